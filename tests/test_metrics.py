"""ClassBiasMetric, files of predictions and who may write them, in real runs; the tools on them."""

import importlib.util
import io
import json
import math
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import DumpResults
from mmengine.registry import METRICS
from mmengine.structures import PixelData
from run_helpers import HOOK, ROOT, config, distiller, run, scenes, segmentor, teacher_file, validation

from lckd_mm import cli
from lckd_mm.evaluation.metrics import ClassBiasMetric, DumpPredictions
from lckd_mm.evaluation.predictions import predictions_of, read_predictions

# Rows = true class, the published check values.
REFERENCE = [[8, 1, 1], [2, 7, 1], [1, 1, 8]]
MODEL = [[6, 3, 1], [1, 8, 1], [2, 2, 6]]


def pairs(confusion):
    return [(t, p) for t, row in enumerate(confusion) for p, count in enumerate(row) for _ in range(count)]


def samples_of(confusion, path=False):
    from mmpretrain.structures import DataSample

    out = []
    for i, (truth, predicted) in enumerate(pairs(confusion)):
        meta = dict(img_path=f'{i}.png') if path else dict(sample_idx=i)
        scores = torch.nn.functional.one_hot(torch.tensor(predicted), 3).float()
        out.append(DataSample(metainfo=meta).set_gt_label(truth).set_pred_label(predicted).set_pred_score(scores))
    return out


def dump(samples, path, kind=DumpResults):
    metric = kind(out_file_path=str(path))
    metric.process({}, [sample.to_dict() for sample in samples])
    metric.evaluate(len(samples))
    return path


def evaluate(metric, samples, classes=('a', 'b', 'c'), batch=4):
    metric.dataset_meta = dict(classes=classes)
    for i in range(0, len(samples), batch):
        metric.process({}, [sample.to_dict() for sample in samples[i : i + batch]])
    return metric.evaluate(len(samples))


@pytest.mark.parametrize('path', [False, True])
def test_the_check_values_from_a_file_of_the_hosts(path, tmp_path):
    file = dump(samples_of(REFERENCE, path), tmp_path / 'ref.pkl')
    values = evaluate(ClassBiasMetric(str(file)), samples_of(MODEL, path))
    assert f'{values["class_bias/cev"]:.9f} {values["class_bias/sde"]:.9f}' == '0.895061728 1.277777778'
    assert values['class_bias/accuracy'] == pytest.approx(2000 / 30)
    assert values['class_bias/reference_accuracy'] == pytest.approx(2300 / 30)
    assert values['class_bias/left_out'] == 0
    pie = sum(a[1] != b[1] for a, b in zip(pairs(REFERENCE), pairs(MODEL)))
    assert values['class_bias/pie'] == pie > 0
    earlier = evaluate(ClassBiasMetric(str(file), convention='2021'), samples_of(MODEL, path))
    assert f'{earlier["class_bias/cev"]:.6f} {earlier["class_bias/sde"]:.6f}' == '4475.308642 90.352533'


def test_the_log_has_a_row_a_class_and_names_what_is_left_out(tmp_path, caplog, capsys):
    perfect = [[10, 0, 0], [0, 9, 1], [0, 2, 8]]
    file = dump(samples_of(perfect), tmp_path / 'ref.pkl')
    values = evaluate(ClassBiasMetric(str(file)), samples_of(MODEL), ('zebra', 'otter', 'lynx'))
    assert values['class_bias/left_out'] == 1
    assert values['class_bias/cev'] > 0
    lines = capsys.readouterr().out + caplog.text
    assert '| zebra | 0.000 | 15.000 | left out | 0.000 | 40.000 | left out |' in lines
    assert 'makes no error of one kind (zebra)' in lines
    smoothed = evaluate(ClassBiasMetric(str(file), smoothing=1.0), samples_of(MODEL))
    assert smoothed['class_bias/left_out'] == 0 and math.isfinite(smoothed['class_bias/cev'])


def maps(labels, predicted):
    from mmseg.structures import SegDataSample

    return [
        SegDataSample(
            metainfo=dict(img_path=f'{i}.png'),
            gt_sem_seg=PixelData(data=y[None]),
            pred_sem_seg=PixelData(data=p[None]),
            seg_logits=PixelData(data=torch.zeros(3, *y.shape)),
        )
        for i, (y, p) in enumerate(zip(labels, predicted))
    ]


def test_pixels_count_as_samples_without_the_ignored(tmp_path):
    truth, before = torch.tensor(pairs(REFERENCE)).T
    after = torch.tensor(pairs(MODEL)).T[1]
    truth, before, after = (
        torch.cat([x, torch.tensor([255 if x is truth else 0] * 6)]) for x in (truth, before, after)
    )
    shape = (2, 3, 6)
    file = dump(maps(truth.view(shape), before.view(shape)), tmp_path / 'ref.pkl', DumpPredictions)
    assert b'seg_logits' not in file.read_bytes()
    values = evaluate(ClassBiasMetric(str(file)), maps(truth.view(shape), after.view(shape)))
    assert f'{values["class_bias/cev"]:.9f}' == '0.895061728'
    assert values['class_bias/pie'] == sum(a[1] != b[1] for a, b in zip(pairs(REFERENCE), pairs(MODEL)))


# ---- files


class Evil:
    """Would touch a file on being unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f'touch {self.path}',)


class EvilStorage(Evil):
    """The same, inside of what torch's own reader of storages would unpickle."""

    def __reduce__(self):
        inner = io.BytesIO()
        torch.save(Evil(self.path), inner, _use_new_zipfile_serialization=False)
        return torch.storage._load_from_bytes, (inner.getvalue(),)


@pytest.mark.parametrize('evil', [Evil, EvilStorage])
def test_a_file_that_would_run_code_is_refused(evil, tmp_path):
    (tmp_path / 'evil.pkl').write_bytes(pickle.dumps([evil(tmp_path / 'ran')], protocol=2))
    with pytest.raises(ValueError, match=r'evil\.pkl.* posix\.system.*--dump FILE.pkl'):
        read_predictions(tmp_path / 'evil.pkl', 'reference')
    assert not (tmp_path / 'ran').exists()
    pickle.loads((tmp_path / 'evil.pkl').read_bytes())
    assert (tmp_path / 'ran').exists()  # so it is evil


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'nowhere.pkl.*tools/test.py'):
        read_predictions(tmp_path / 'nowhere.pkl', 'reference')
    (tmp_path / 'text.pkl').write_text('accuracy: 93')
    with pytest.raises(ValueError, match=r'text\.pkl'):
        read_predictions(tmp_path / 'text.pkl', 'reference')
    one = dict(gt_label=torch.tensor([1]), pred_label=torch.tensor([1]))
    cases = {
        'dict': {},
        'gt_label': [dict(sample_idx=0, pred_label=torch.tensor([1]))],
        'pred_label': [dict(sample_idx=0, gt_label=torch.tensor([1]))],
        'sample_idx nor img_path': [one],
        '2 labels': [dict(sample_idx=0, gt_label=torch.tensor([1, 2]))],
        'boxes': [dict(sample_idx=0, pred_instances={})],
        '2 samples with 1': [dict(one, sample_idx=0)] * 2,
    }
    for word, content in cases.items():
        (tmp_path / 'case.pkl').write_bytes(pickle.dumps(content, protocol=2))
        with pytest.raises(ValueError, match=word):
            read_predictions(tmp_path / 'case.pkl', 'reference')


def test_arrays_and_numpy_numbers_are_read(tmp_path):
    content = [dict(sample_idx=np.int64(0), gt_label=np.array([2]), pred_score=np.array([0.1, 0.7]), scale=(1.0, 2))]
    (tmp_path / 'file.pkl').write_bytes(pickle.dumps(content, protocol=2))
    ((truth, predicted),) = read_predictions(tmp_path / 'file.pkl', 'reference').values()
    assert (int(truth), int(predicted)) == (2, 1)


def test_samples_that_are_not_the_references_are_refused(tmp_path):
    file = dump(samples_of(REFERENCE), tmp_path / 'ref.pkl')
    others = samples_of([[10, 0, 0], [0, 11, 0], [0, 0, 10]])
    with pytest.raises(ValueError, match='sample_idx 20'):
        evaluate(ClassBiasMetric(str(file)), others)
    with pytest.raises(ValueError, match=r'img_path 0\.png'):
        evaluate(ClassBiasMetric(str(file)), samples_of(MODEL, path=True))
    with pytest.raises(ValueError, match='TeacherReferenceHook'):
        evaluate(ClassBiasMetric('teacher'), samples_of(MODEL))
    for arguments in (dict(convention='2020'), dict(smoothing=-1.0)):
        with pytest.raises(ValueError, match='|'.join(arguments)):
            ClassBiasMetric('teacher', **arguments)


# ---- runs


def bias_run(scenes, teacher_file, work_dir, **extra):
    teacher, path = teacher_file('mmseg')
    cfg = config('mmseg', scenes, work_dir, distiller('mmseg', segmentor(4), teacher, path), 4, **validation(scenes))
    cfg.train_cfg.val_interval = 2
    cfg.default_hooks.distillation = HOOK
    cfg.val_evaluator = [dict(type='IoUMetric'), dict(type='lckd_mm.ClassBiasMetric', reference='teacher')]
    cfg.merge_from_dict(extra)
    return cfg


def test_the_teacher_is_the_reference_of_a_distillation(scenes, teacher_file, tmp_path):
    hooks = [dict(type='lckd_mm.TeacherCheckHook'), dict(type='lckd_mm.TeacherReferenceHook')]
    cfg = bias_run(scenes, teacher_file, tmp_path / 'run', custom_hooks=hooks)
    runner = run(cfg)
    plain = bias_run(scenes, teacher_file, tmp_path / 'plain', val_evaluator=[dict(type='IoUMetric')])
    weights = run(plain).model.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in runner.model.state_dict().items())
    # Against the teacher's own pass over the set, by hand.
    metric = runner.val_loop.evaluator.metrics[1]
    assert len(metric._reference) == 4
    model, ours, theirs, pixels = runner.model.eval(), 0, 0, 0
    for batch in runner.val_loop.dataloader:
        teacher = predictions_of(model.teacher.predict(batch, model.data_preprocessor), 'test')
        with torch.no_grad():
            student = predictions_of(model.val_step(batch), 'test')
        for key, (truth, predicted) in student.items():
            assert torch.equal(metric._reference[key][1], teacher[key][1])
            ours += int((predicted != teacher[key][1])[truth != 255].sum())
            pixels += int((truth != 255).sum())
            theirs += int((teacher[key][1] == truth)[truth != 255].sum())
    logged = {k: v.current() for k, v in runner.message_hub.log_scalars.items() if 'class_bias' in k}
    assert logged['val/class_bias/pie'] == ours > 0
    assert logged['val/class_bias/reference_accuracy'] == pytest.approx(100 * theirs / pixels)


def test_the_hook_without_its_metric_and_the_metric_without_its_hook(scenes, teacher_file, tmp_path):
    cfg = bias_run(scenes, teacher_file, tmp_path / 'a', custom_hooks=[dict(type='lckd_mm.TeacherReferenceHook')])
    cfg.val_evaluator = [dict(type='IoUMetric')]
    with pytest.raises(ValueError, match='ClassBiasMetric'):
        run(cfg)
    with pytest.raises(ValueError, match='TeacherReferenceHook'):
        run(bias_run(scenes, teacher_file, tmp_path / 'b'))


DIGITS = 'configs/digits/wrn10-1_1xb30_digits300.py'


@pytest.mark.full
def test_the_tools_from_checkpoints_to_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    from lckd_mm.hosts import build_model

    files = []
    for seed in range(3):
        torch.manual_seed(seed)
        cfg = Config.fromfile(DIGITS)
        torch.save(dict(state_dict=build_model(cfg.model, 'mmpretrain').state_dict()), tmp_path / f'{seed}.pth')
        files.append(str(tmp_path / f'{seed}.pkl'))
        argv = [DIGITS, str(tmp_path / f'{seed}.pth'), '--work-dir', str(tmp_path), '--dump', files[-1]]
        assert cli.run_tool(cli.test, argv) == 0
    assert cli.run_tool(cli.test, [*argv[:-1], 'file.txt']) == 1
    assert 'must end in .pkl' in capsys.readouterr().err
    spec = importlib.util.spec_from_file_location('class_bias', ROOT / 'tools' / 'analysis' / 'class_bias.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    tool.main([*files, '--smoothing', '0.5', '--json', str(tmp_path / 'out.json'), '--plot', str(tmp_path / 'out.png')])
    text = capsys.readouterr().out
    result = json.loads((tmp_path / 'out.json').read_text())
    runs = [read_predictions(file, 'test') for file in files]
    accuracies = [100 * sum(int(t == p) for t, p in r.values()) / 899 for r in runs]
    assert result['reference_accuracy'] == pytest.approx(accuracies[:1])
    assert result['accuracy'] == pytest.approx(accuracies[1:])
    assert result['cev']['2021'] == pytest.approx(5000 * result['cev']['2022'])
    assert text.count('\n| ') == 10 and f'PIE: {result["pie"]} of 899 samples' in text
    assert (tmp_path / 'out.png').stat().st_size > 5000
    # The reference against itself has no bias; a file that is not safe is one sentence.
    tool.main([files[0], files[0]])
    assert 'PIE: 0 of 899' in capsys.readouterr().out
    (tmp_path / 'evil.pkl').write_bytes(pickle.dumps([Evil(tmp_path / 'ran')], protocol=2))
    again = ['tools/analysis/class_bias.py', files[0], str(tmp_path / 'evil.pkl')]
    out = subprocess.run([sys.executable, '-W', 'ignore', *again], capture_output=True, text=True)
    assert out.returncode == 1 and 'it would run posix.system' in out.stderr and 'Traceback' not in out.stderr


def test_voc_metric_has_the_ap_of_each_class_at_each_threshold():
    from mmdet.evaluation.metrics import VOCMetric as Hosts
    from mmengine.structures import InstanceData

    arguments = dict(metric='mAP', iou_thrs=[0.5, 0.7], eval_mode='area')
    ours = METRICS.build(dict(type='lckd_mm.VOCMetric', **arguments))
    theirs = Hosts(**arguments)
    truth = torch.tensor([[0, 0, 10, 10], [20, 20, 40, 40], [50, 0, 60, 10]]).float()
    # The first box is exact, the second has an IoU of 0.6, of the third class nothing is found.
    found = torch.tensor([[0, 0, 10, 10], [20, 20, 40, 32]]).float()
    sample = dict(
        gt_instances=InstanceData(bboxes=truth, labels=torch.tensor([0, 1, 2])),
        ignored_instances=InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long()),
        pred_instances=InstanceData(bboxes=found, labels=torch.tensor([0, 1]), scores=torch.tensor([0.9, 0.8])),
    )
    for metric in (ours, theirs):
        metric.dataset_meta = dict(classes=('RBC', 'WBC', 'Platelets', 'none of them'))
        metric.process({}, [sample])
    values, expected = ours.evaluate(1), theirs.evaluate(1)
    classes = {f'pascal_voc/AP{t}_{c}': float(c == 'RBC' or (c, t) == ('WBC', 50))
               for t in (50, 70) for c in ('RBC', 'WBC', 'Platelets')}  # fmt: skip
    assert values.items() >= classes.items()
    assert not any('none of them' in key for key in values)
    assert values['pascal_voc/AP50'] == pytest.approx(2 / 3) and values['pascal_voc/mAP'] == pytest.approx(0.5)
    assert {k: round(v, 3) for k, v in values.items() if k in expected} == {k: round(v, 3) for k, v in expected.items()}


@pytest.mark.parametrize('given', [dict(metric='recall'), dict(scale_ranges=[(0, 32), (32, 96)])])
def test_voc_metric_refuses_what_it_does_not_compute(given):
    with pytest.raises(ValueError, match=rf'VOCMetric: .*{next(iter(given))}.*; use mmdet\.VOCMetric'):
        METRICS.build(dict(type='lckd_mm.VOCMetric', **given))
