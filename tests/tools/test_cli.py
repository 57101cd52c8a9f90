"""tools/train.py and tools/test.py: what bad input gets, and what good input gives."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from run_helpers import ROOT, scenes

from lckd_mm import cli
from lckd_mm.cli.ending import command
from lckd_mm.hosts import build_model

LCKD = 'configs/demo/kd-rawlip_fcn_r18-w32_fcn_r18-w8_1xb8-digit-scenes-96x96.py'
ALONE = 'configs/demo/fcn_r18-w8_1xb8-digit-scenes-96x96.py'
TEACHER = 'configs/demo/fcn_r18-w32_1xb8-digit-scenes-96x96.py'


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope='session')
def teacher(tmp_path_factory):
    """A small teacher's file; the demo's teacher with a quarter of its width."""
    path = tmp_path_factory.mktemp('teacher') / 'teacher.pth'
    model = build_model(Config.fromfile(ALONE).model, 'mmseg')
    torch.save(dict(state_dict=model.state_dict()), path)
    return path


@pytest.fixture
def train(scenes, teacher, tmp_path, capsys):
    """train(config, *options) -> (exit status, stderr)"""

    def call(config, *options, debug=False):
        roots = [f'{loader}.dataset.data_root={scenes}' for loader in ('train_dataloader', 'val_dataloader')]
        argv = [config, '--work-dir', str(tmp_path / 'run'), '--cfg-options', *roots]
        argv += [f'model.teacher.checkpoint={teacher}', f'model.teacher.model={ALONE}']
        argv += [*options, 'train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'train_dataloader.batch_size=2']
        status = cli.run_tool(cli.train, argv + (['--debug'] if debug else []))
        return status, capsys.readouterr().err

    return call


# One of each kind; other mistakes in a Distiller's config are in tests/test_distiller_build.py and tests/test_terms.py.
BAD = {
    'missing data': (
        ['train_dataloader.dataset.data_root=data/nowhere/digit_scenes'],
        ['data/nowhere/digit_scenes', 'python tools/prepare_data.py digit-scenes'],
    ),
    'missing teacher': (['model.teacher.checkpoint=nowhere.pth'], ["'nowhere.pth'"]),
    'teacher of another width': ([f'model.teacher.model={TEACHER}'], ['size mismatch', 'backbone.']),
    'no such module': (['model.taps.stage2=backbone.layer9'], ["'backbone.layer9'", 'closest', 'layer']),
    'class counts': (['model.student.decode_head.num_classes=7'], ["'loss_kd'", '7', '11']),
    'unknown loss': (
        ['model.terms.loss_kd.loss.type=lckd_mm.LipschizLoss'],
        ["'lckd_mm.LipschizLoss'", "'lckd_mm.LipschitzLoss'", 'docs/reference.md'],
    ),
    'unknown argument of a loss': (['model.terms.loss_kd.loss.temperature=3'], ['KDLoss', 'temperature']),
    'unknown action': (['default_hooks.non_finite.action=ignore'], ['NonFiniteHook', "'ignore'", 'stop, skip']),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_input_is_one_sentence_before_training(case, train, tmp_path):
    options, words = BAD[case]
    status, err = train(LCKD, *options)
    assert status == 1
    lines = [line for line in err.splitlines() if line.startswith('error: ')]
    assert len(lines) == 1 and 'Traceback' not in err
    for word in words:
        assert word in lines[0], lines[0]
    assert not list((tmp_path / 'run').glob('*.pth'))


@pytest.mark.parametrize(
    ('name', 'text', 'word'),
    [
        ('empty.py', 'train_cfg = dict(max_iters=1)\n', 'no `model`'),
        ('none.py', None, "no config file '"),
        ('syntax.py', 'model = dict(\n', 'never closed'),
        ('raises.py', '1 / 0\n', 'division by zero'),
        ('list.json', '[1, 2]', 'list.json'),
        ('number.py', 'model = 5\n', 'no `model`'),
        ('loader.py', "model = dict(type='A')\ntrain_dataloader = 5\n", 'train_dataloader'),
        ('text.txt', 'model', 'text.txt'),
        ('base.py', "_base_ = './nowhere.py'\n", 'nowhere.py'),
    ],
)
def test_a_config_that_cannot_be_used_is_one_sentence(name, text, word, tmp_path, capsys):
    if text is not None:
        (tmp_path / name).write_text(text)
    assert cli.run_tool(cli.train, [str(tmp_path / name)]) == 1
    err = capsys.readouterr().err
    assert err.startswith('error: ') and word in err and 'Traceback' not in err


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_amp_without_a_gpu_says_so(train, capsys):
    assert cli.run_tool(cli.train, [ALONE, '--amp']) == 1
    said = capsys.readouterr().err
    assert '--amp: mixed precision needs a GPU' in said and 'optim_wrapper.type=lckd_mm.AutocastOptimWrapper' in said


def test_terms_that_are_not_finite_stop_the_run_in_one_sentence(train, tmp_path):
    status, err = train(LCKD, 'param_scheduler=None', 'optim_wrapper.optimizer.lr=1e30')
    assert status == 1 and "error: term 'loss_" in err and 'in iteration 2' in err
    assert 'Traceback' not in err and 'student tap' in err
    assert 'nothing has been updated' in err and not list((tmp_path / 'run').glob('iter*.pth'))


def test_debug_shows_the_traceback(train):
    with pytest.raises(ValueError, match='at least 0'):
        train(LCKD, 'model.terms.loss_kd.weight=-1', debug=True)


def test_the_script_itself_exits_with_1_and_no_traceback(tmp_path):
    command = [sys.executable, '-W', 'ignore', 'tools/train.py', 'configs/lckd_fcn_voc.py', '--work-dir', tmp_path]
    out = subprocess.run(command, capture_output=True, text=True)
    assert out.returncode == 1
    assert 'Traceback' not in out.stderr
    assert "no data at 'data/VOCdevkit/VOC2012'" in out.stderr and 'docs/getting-started.md' in out.stderr
    assert not any(tmp_path.iterdir())


def test_weights_are_composed_from_the_command_line_and_the_test_tool_tests_the_student(train, scenes, tmp_path):
    options = 'model.terms.loss_kd.weight=0', 'model.terms.loss_lipschitz.loss.gap=absolute'
    status, err = train(LCKD, *options, '--cfg-options=train_dataloader.num_workers=0', '--cfg-options')
    assert status == 0, err
    run = tmp_path / 'run'
    (file,) = run.glob('*/vis_data/scalars.json')
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    # connectors' state stands beside the student in the file
    saved = torch.load(run / 'iter_2.pth')
    assert 'lckd_mm' in saved and not any(k.startswith('student') for k in saved['state_dict'])
    (dumped,) = run.glob('kd-rawlip*.py')
    assert Config.fromfile(dumped).model.terms.loss_kd.weight == 0
    validated = [e for e in entries if 'mIoU' in e][-1]['mIoU']

    # The last lines: the student's file, the score, and the commands that follow.
    (log,) = run.glob('*/*.log')
    *_, student, score, tested, report, exported = log.read_text().splitlines()
    assert f'{run}/student.pth is the student alone, of iter_2.pth' in student
    assert 'finished, last validation: aAcc ' in score and f'mIoU {validated:.4f}' in score
    assert report.split() == ['lckd_mm', 'report', str(run)]
    out = [f'{run}/student.onnx', '--end-to-end']
    assert exported.split()[:6] == ['lckd_mm', 'export', LCKD, f'{run}/student.pth', *out]
    given = shlex.split(tested)
    assert given[:4] == ['lckd_mm', 'test', LCKD, f'{run}/student.pth'] and 'model.terms.loss_kd.weight=0' in given
    assert 'train_dataloader.num_workers=0' in given

    # of a distillation config, the student alone; the same as the student's own config
    root = f'test_dataloader.dataset.data_root={scenes}'
    for argv in ([*given[2:], root], [ALONE, str(run / 'iter_2.pth'), '--cfg-options', root]):
        out = tmp_path / 'new' / 'metrics.json'
        assert cli.run_tool(cli.test, [*argv, '--work-dir', str(tmp_path / 'test'), '--out', str(out)]) == 0
        assert json.loads(out.read_text())['mIoU'] == pytest.approx(validated)


def test_testing_another_nets_checkpoint_is_refused(scenes, teacher, tmp_path, capsys):
    root = f'test_dataloader.dataset.data_root={scenes}'
    argv = [TEACHER, str(teacher), '--work-dir', str(tmp_path), '--cfg-options', root]
    assert cli.run_tool(cli.test, argv) == 1
    assert 'size mismatch' in capsys.readouterr().err


def test_the_hooks_of_every_training_go_away_with_none():
    hooks = dict(distillation=None, resume=None, non_finite=dict(action='skip'))
    cfg = Config(dict(model=dict(type='lckd_mm.Distiller'), default_hooks=hooks))
    cli.add_hooks(cfg)
    assert cfg.default_hooks.to_dict() == dict(
        non_finite=dict(type='lckd_mm.NonFiniteHook', action='skip'),
        checkpoint=dict(type='lckd_mm.SafeCheckpointHook', interval=1),
    )
    plain = Config(dict(model=dict(type='EncoderDecoder')))
    cli.add_hooks(plain)
    assert set(plain.default_hooks) == {'resume', 'checkpoint'}


def test_the_commands_are_called_as_the_tool_that_runs(monkeypatch):
    monkeypatch.setattr(sys, 'argv', [str(ROOT / 'tools/train.py')])
    python, file = command('analysis/report').split()
    assert Path(file) == Path('tools/analysis/report.py') and Path(file).is_file()
    assert subprocess.run([python, '-c', 'import lckd_mm.errors']).returncode == 0
    monkeypatch.setattr(sys, 'argv', [str(ROOT / 'lckd_mm/.mim/tools/train.py')])
    assert command('analysis/report') == 'lckd_mm report'
