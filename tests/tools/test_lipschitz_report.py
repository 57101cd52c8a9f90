"""tools/analysis/lipschitz_report.py on the three hosts, end to end, and what its figures must be."""

import json
import math
import runpy
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from run_helpers import HOSTS, ROOT, config, count, distiller, scenes

from lckd_mm.cli import run_tool
from lckd_mm.cli import test as run_test
from lckd_mm.hosts import build_model

EVALUATORS = dict(
    mmseg=(dict(type='IoUMetric', iou_metrics=['mIoU']), 'mIoU'),
    mmpretrain=(dict(type='Accuracy', topk=(1,)), 'accuracy/top1'),
    mmdet=(dict(type='VOCMetric', metric='mAP', eval_mode='area'), 'pascal_voc/mAP'),
)


@pytest.fixture
def tool():
    yield SimpleNamespace(**runpy.run_path(str(ROOT / 'tools/analysis/lipschitz_report.py')))
    DefaultScope._instance_dict.clear()


def weights(host, width, path, seed):
    """A checkpoint whose running statistics are of a batch, so that features have a usual size; the model's dict."""
    model = HOSTS[host][0](width)
    torch.manual_seed(seed)
    net = build_model(model, host)
    net.train()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
        for _ in range(30):
            net.backbone(torch.randn(4, 3, 64, 64))
    torch.save(dict(state_dict=net.state_dict()), path)
    return model


@pytest.fixture
def written(scenes, tmp_path):
    """``written(host)``: arguments of the tool, for a small distillation on four test images."""

    def write(host, **changes):
        teacher = weights(host, 8, tmp_path / 'teacher.pth', 7)
        student = weights(host, 4, tmp_path / 'student.pth', 8)
        weights(host, 4, tmp_path / 'alone.pth', 9)
        cfg = config(host, scenes, tmp_path / 'work', distiller(host, student, teacher, tmp_path / 'teacher.pth'))
        data = HOSTS[host][1](scenes, 'train' if host == 'mmpretrain' else 'val')
        steps = [dict(type='LoadImageFromFile')]
        if host == 'mmdet':
            steps += [dict(type='Resize', scale=(64, 64)), dict(type='LoadAnnotations', with_bbox=True)]
            keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
            data.update(test_mode=True, pipeline=[*steps, dict(type='PackDetInputs', meta_keys=keys)])
        elif host == 'mmseg':
            data.update(test_mode=True, pipeline=[*steps, dict(type='LoadAnnotations'), dict(type='PackSegInputs')])
        else:
            data.update(pipeline=[*steps, dict(type='PackInputs')])
        sampler = dict(type='DefaultSampler', shuffle=False)
        cfg.test_dataloader = dict(batch_size=3, num_workers=0, sampler=sampler, dataset=data)
        cfg.test_evaluator, cfg.test_cfg = EVALUATORS[host][0], {}
        cfg.merge_from_dict(changes)
        cfg.dump(tmp_path / 'config.py')
        return [str(tmp_path / 'config.py'), str(tmp_path / 'student.pth')]

    return write


@pytest.mark.parametrize('host', count(list(HOSTS), list(HOSTS)[:2]))
def test_a_report_of_each_host(tool, written, tmp_path, host, capsys):
    arguments = written(host)
    out = tmp_path / 'out'
    more = ['--before', f'alone={tmp_path / "alone.pth"}', '--images', '2', '--noise', '0.3', '--out', str(out)]
    assert run_tool(tool.main, [*arguments, *more]) == 0
    text = capsys.readouterr().out
    assert text.strip() == (out / 'lipschitz.md').read_text().strip()
    result = json.loads((out / 'lipschitz.json').read_text())
    assert result['metric'] == EVALUATORS[host][1] and result['images'] == 2
    (run,) = result['runs']
    assert list(run) == ['teacher', 'alone', 'student']
    for net in run.values():
        assert list(net['stages']) == [f'stage{i} → stage{i + 1}' for i in (1, 2, 3)]
        assert net['unconverged'] == 0
        for stage in net['stages'].values():
            assert len(stage['sigma']) == len(stage['constant']) == 2
            # No image's constant passes the bound, and all are of real nets, not of zeros.
            assert 0 < max(stage['constant']) <= stage['bound'] * (1 + 1e-5)
        for tap in net['taps'].values():
            assert min(tap['image']) > 0 and min(tap['changes']['0.3']) > 0
    # Clean, the metric is what tools/test.py gives.
    test = [*arguments, '--out', str(tmp_path / 'metrics.json'), '--work-dir', str(tmp_path / 'test')]
    DefaultScope._instance_dict.clear()
    run_test(test)
    metrics = json.loads((tmp_path / 'metrics.json').read_text())
    for name, value in run['student']['metrics']['0.0'].items():
        assert value == pytest.approx(metrics[name], nan_ok=True), name
    import cv2

    picture = cv2.imread(str(out / 'lipschitz.png'))
    assert min(picture.shape[:2]) > 500 and picture.std() > 10
    # The table's gap is that of the values in the JSON, image by image.
    gaps = [
        abs(math.log(a / b))
        for a, b in zip(*(run[net]['stages']['stage1 → stage2']['sigma'] for net in ('student', 'teacher')))
    ]
    row = next(line for line in text.splitlines() if line.startswith('| stage1 → stage2: gap of sigma |'))
    assert float(row.split('|')[-2].split('±')[0]) == pytest.approx(sum(gaps) / 2, rel=0.02)
    assert row.split('|')[2].strip() == '–'


def test_a_teacher_that_is_the_student_differs_in_nothing_even_when_its_images_are_normalised_otherwise(
    tool, written, tmp_path
):
    arguments = written('mmseg')
    state = torch.load(tmp_path / 'student.pth')['state_dict']
    # Its std is half of the student's, so that its images are twice as large: its first convolution takes it back.
    state['backbone.stem.0.weight'] /= 2
    torch.save(dict(state_dict=state), tmp_path / 'teacher.pth')
    cfg = Config.fromfile(arguments[0])
    cfg.model.teacher.model = Config(dict(x=cfg.model.student)).x.copy()
    preprocessor = dict(cfg.model.student.data_preprocessor)
    cfg.model.teacher.model['data_preprocessor'] = dict(preprocessor, std=[x / 2 for x in preprocessor['std']])
    cfg.dump(arguments[0])
    out = tmp_path / 'out'
    assert run_tool(tool.main, [*arguments, '--images', '2', '--noise', '0.3', '--out', str(out)]) == 0
    (run,) = json.loads((out / 'lipschitz.json').read_text())['runs']
    for kind in ('stages', 'taps'):
        for mine, theirs in zip(run['student'][kind].values(), run['teacher'][kind].values(), strict=True):
            for key in set(mine) - {'changes'}:
                assert mine[key] == pytest.approx(theirs[key], rel=1e-3), key
    tap = 'stage4'
    changes = [run[net]['taps'][tap]['changes']['0.3'] for net in run]
    assert changes[0] == pytest.approx(changes[1], rel=1e-3)
    for level in ('0.0', '0.3'):
        teacher, student = (run[net]['metrics'][level]['aAcc'] for net in run)
        assert teacher == pytest.approx(student, abs=0.5)


def test_several_seeds_give_means_over_seeds_and_paired_differences(tool, written, tmp_path, capsys):
    arguments = written('mmpretrain')
    for seed in (0, 1):
        for net in ('student', 'alone'):
            (tmp_path / f'{net}{seed}.pth').write_bytes((tmp_path / f'{net}.pth').read_bytes())
    state = torch.load(tmp_path / 'student.pth')
    state['state_dict']['backbone.layer2.0.conv1.weight'] *= 2
    torch.save(state, tmp_path / 'student1.pth')
    out = tmp_path / 'out'
    more = ['--before', f'alone={tmp_path}/alone{{seed}}.pth', '--seeds', '0', '1', '--images', '2', '--noise']
    more += ['--without', 'image', 'metric', '--out', str(out)]
    assert run_tool(tool.main, [arguments[0], f'ours={tmp_path}/student{{seed}}.pth', *more]) == 0
    text = capsys.readouterr().out
    result = json.loads((out / 'lipschitz.json').read_text())
    assert result['checkpoints']['ours'] == [f'{tmp_path}/student{seed}.pth' for seed in (0, 1)]
    key = 'stage1 → stage2'
    means = [sum(run['ours']['stages'][key]['constant']) / 2 for run in result['runs']]
    alone = sum(result['runs'][0]['alone']['stages'][key]['constant']) / 2
    assert means[0] != means[1]
    rows = [line for line in text.splitlines() if line.startswith(f'| {key}: constant |')]
    mean = sum(means) / 2
    cells = [cell.strip() for cell in rows[0].split('|')[2:-1]]
    assert float(cells[2].split('±')[0]) == pytest.approx(mean, rel=0.01)
    assert float(cells[2].split('±')[1]) == pytest.approx(abs(means[0] - means[1]) / 2**0.5, rel=0.02)
    above = sum(m > alone for m in means)
    difference = rows[1].split('|')[2].strip()
    assert float(difference.split('±')[0]) == pytest.approx(mean - alone, rel=0.02)
    assert difference.endswith(f'({above}/2)')
    assert 'Correlation with ln constant over the 4 students' in text
    # The other way round, from the same measurements.
    result['pairs'] = [('alone', 'ours')]
    swapped = next(line for line in tool.paired(result) if line.startswith(f'| {key}: constant |'))
    assert float(swapped.split('|')[2].split('±')[0]) == pytest.approx(alone - mean, rel=0.02)
    assert 'under noise' not in text and 'From the image' not in text


def test_correlations_are_of_logarithms(tool):
    assert tool.log_correlation([1, 10, 100], [5, 50, 500]) == pytest.approx(1)
    assert tool.log_correlation([1, 10, 100], [8, 4, 2]) == pytest.approx(-1)
    assert tool.log_correlation([1, 2], [1, 2]) is None and tool.log_correlation([1, 1, 1], [1, 2, 3]) is None


def test_a_plain_config_reports_the_backbone_s_stages_without_a_teacher(tool, written, tmp_path, capsys):
    arguments = written('mmpretrain')
    cfg = Config.fromfile(arguments[0])
    cfg.model = cfg.model.student
    cfg.dump(arguments[0])
    quick = ['--images', '1', '--noise', '--without', 'metric', 'constant', 'image']
    assert run_tool(tool.main, [*arguments, *quick]) == 0
    text = capsys.readouterr().out
    assert '| stage3 → stage4: bound |' in text and '|  | student |' in text and 'gap' not in text
    assert run_tool(tool.main, [*arguments, '--teacher', str(tmp_path / 'teacher.pth')]) == 1
    assert '--teacher: the config' in capsys.readouterr().err


def test_mistakes_are_sentences(tool, written, tmp_path, capsys):
    arguments = written('mmpretrain')
    quick = ['--images', '1', '--noise', '--without', 'constant', 'image', 'bound']
    for more, offending in (
        (['--images', '0'], '--images'),
        (['--noise', '0.1', '-1'], '-1.0'),
        (['--before', str(tmp_path / 'none.pth')], 'none.pth'),
        (['--teacher', 'nowhere.pth'], "'nowhere.pth'"),
        (['--before', f'student={tmp_path / "alone.pth"}'], "'student'"),
        (['--against', 'student=kd'], "'student=kd'"),
        (['--seeds', '0', '1'], '--seeds'),
        ([*quick, '--before', f'alone={tmp_path / "teacher.pth"}'], 'alone: the checkpoint'),
        ([*quick, '--metric', 'mIoU'], "'mIoU'"),
        (['--cfg-options', 'test_dataloader=None'], 'test_dataloader'),
        (['--cfg-options', 'model.taps.stage2=backbone.layer9'], "'backbone.layer9'"),
        (['--cfg-options', "model.terms.loss_lipschitz.on=['stage1','stage9']"], "'stage9'"),
    ):
        assert run_tool(tool.main, [*arguments, *more]) == 1, more
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith('error: ') and offending in error, error
        DefaultScope._instance_dict.clear()
