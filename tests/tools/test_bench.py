"""The benchmarks run, and the accuracy that they promise holds on real features; times are not asserted."""

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from run_helpers import ROOT, scenes

BENCH = ROOT / 'tools' / 'bench'
DEMO = 'configs/demo/kd-rawlip_fcn_r18-w32_fcn_r18-w8_1xb8-digit-scenes-96x96.py'


@pytest.fixture
def bench(monkeypatch):
    """The modules of tools/bench."""
    monkeypatch.syspath_prepend(str(BENCH))
    import features
    import lipschitz

    return features, lipschitz


def small_set(features, name):
    """The shape set at a fraction of its cost: the same hosts, taps and depths of features."""
    which = features.SETS[name]
    if name == 'cifar':
        nets = dict(student=features._wrn(16), teacher=features._wrn(16))
        return replace(which, batch=48, train_batch=32, **nets)
    if name == 'imagenet':
        return replace(which, student=features._resnet(50), teacher=features._resnet(50), batch=2, size=(96, 96))
    size = {'fcn': (96, 96), 'retinanet': (160, 224)}[name]
    return replace(which, teacher=which.student, batch=1, size=size)


@pytest.mark.parametrize(
    ('name', 'steps'),
    [('cifar', 0), pytest.param('cifar', 12, marks=pytest.mark.full), ('imagenet', 0), ('fcn', 0), ('retinanet', 0)],
)
def test_errors_on_real_features_are_below_the_bars(bench, monkeypatch, tmp_path, name, steps):
    features, lipschitz = bench
    monkeypatch.setitem(features.SETS, name, small_set(features, name))
    student, teacher = features.feature_maps(name, steps, tmp_path)
    errors = lipschitz.errors(student, teacher)
    assert errors['value_99_ours'] <= 1e-3
    assert errors['gradients'] > 0
    assert errors['gradient_99'] <= 1e-2
    if name == 'cifar':
        # What the bars are for: on spectra that are not well apart, a few power steps are not enough.
        assert errors['value_99_authors5'] > 1e-2


def test_every_side_computes_the_same_gap(bench):
    _, lipschitz = bench
    torch.manual_seed(0)
    nets = [[torch.randn(2, c, s, s).double() for c, s in ((6, 8), (8, 4), (5, 2))] for _ in range(2)]
    exact = lipschitz.SIDES['matrix_norm'](*nets)
    torch.testing.assert_close(lipschitz.SIDES['ours'](*nets), exact, rtol=1e-9, atol=0)
    many = lipschitz.gap_of(lipschitz.authors_norm(400), *([x.float() for x in maps] for maps in nets))
    torch.testing.assert_close(many.double(), exact, rtol=1e-3, atol=0)


def test_the_exact_spectrum_is_that_of_the_matrix(bench):
    _, lipschitz = bench
    from lckd_mm.functional import transmitting_matrix

    torch.manual_seed(0)
    for shapes in (((1, 6, 8, 8), (1, 5, 4, 4)), ((1, 20, 3, 2), (1, 30, 3, 2))):
        front, back = (torch.randn(s).double() for s in shapes)
        exact = torch.linalg.svdvals(transmitting_matrix(front, back)[0])
        spectrum = lipschitz.exact_spectrum(front, back)
        torch.testing.assert_close(spectrum, exact[: len(spectrum)], rtol=1e-9, atol=1e-12)


def run(*command):
    out = subprocess.run([sys.executable, '-W', 'ignore', *map(str, command)], capture_output=True, text=True, cwd=ROOT)
    assert out.returncode == 0, out.stderr[-2000:]
    return out.stdout


@pytest.mark.full
def test_the_lipschitz_bench_prints_its_tables_and_writes_json(tmp_path):
    command = (BENCH / 'lipschitz.py', '--sets', 'cifar', '--steps', 0, '--rounds', 1, '--skip', 'matrix_norm')
    text = run(*command, '--work-dir', tmp_path, '--json', tmp_path / 'out.json', '--device', 'cpu')
    rows = json.loads((tmp_path / 'out.json').read_text())['rows']
    assert [(row['set'], row['state']) for row in rows] == [('cifar', 'fresh')]
    assert rows[0]['shapes'] == [[128, 64, 32, 32], [128, 128, 16, 16], [128, 256, 8, 8]]
    for side in ('ours', 'authors10', 'authors5', 'mse'):
        assert rows[0]['sides'][side]['ms'] > 0
    # Memory does not depend on the machine's load, so this bar can be held.
    assert rows[0]['sides']['ours']['mib'] <= 0.1 * rows[0]['sides']['authors10']['mib']
    assert text.count('| WRN28-4 → WRN16-4, 128 x 32 x 32 |') == 3


def test_the_step_bench_takes_a_step_apart(tmp_path):
    options = ('model.teacher.checkpoint=absent.pth', f'train_dataloader.dataset.data_root={tmp_path}/absent')
    text = run(BENCH / 'step.py', DEMO, '--rounds', 1, '--json', tmp_path / 'out.json', '--device', 'cpu',
               '--cfg-options', *options)  # fmt: skip
    result = json.loads((tmp_path / 'out.json').read_text())
    assert result['batch'] == '8 made-up images of 96 x 96'
    parts = {'student', 'teacher', 'teacher_whole', 'distillation', 'teacher for loss_kd', 'teacher for loss_lipschitz'}
    assert set(result['ms']) == parts | {'without loss_kd', 'without loss_lipschitz'}
    assert 'of student + teacher' in text


@pytest.mark.full
def test_the_overhead_bench_sets_methods_against_the_student_alone(tmp_path):
    # One that waits for training images, and one of several optimizers.
    command = (BENCH / 'overhead.py', '--runs', 'ft', 'online-afd', '--rounds', 1, '--json', tmp_path / 'out.json')
    text = run(*command, '--device', 'cpu')
    alone, *others = json.loads((tmp_path / 'out.json').read_text())['rows'].values()
    assert alone['ratio'] == 1 and len(others) == 2
    assert all(row['ms'] > 0 and row['mib'] > alone['mib'] for row in others)
    assert '| FT | ' in text


def test_the_step_bench_refuses_a_plain_config():
    out = subprocess.run(
        [sys.executable, '-W', 'ignore', str(BENCH / 'step.py'), 'configs/demo/fcn_r18-w8_1xb8-digit-scenes-96x96.py'],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert out.returncode == 1
    assert 'is no distillation config' in out.stderr


@pytest.mark.full
def test_pruning_is_compared(tmp_path):
    quick = ('train_cfg.max_epochs=2', 'train_cfg.val_interval=2', 'train_dataloader.dataset.subset=60',
             'param_scheduler.0.T_max=2', 'default_hooks.checkpoint.interval=2')  # fmt: skip
    command = (BENCH / 'pruning.py', '--seeds', 1, '--variants', 'pruned-channels-kd', '--work-dir', tmp_path)
    text = run(*command, '--cfg-options', *quick)
    results = json.loads((tmp_path / 'pruning.json').read_text())
    assert list(results) == ['alone', 'pruned-channels-kd']
    assert results['alone']['pie'] == 0
    assert len(results['pruned-channels-kd']['accuracy']) == 1 and results['pruned-channels-kd']['samples'] == 899
    assert '| the same, with KD | ' in text
    state = torch.load(next(tmp_path.glob('seed0/pruned-channels-kd/epoch_2.pth')), weights_only=False)
    weight = state['state_dict']['backbone.block3.0.conv1.weight']
    assert int((weight.flatten(1).abs().sum(1) == 0).sum()) == int(0.45 * 64)


RAZOR = BENCH / 'razor.py'


def module_of(name, monkeypatch):
    """A script of tools/bench as a module; there is a folder called razor, too."""
    monkeypatch.syspath_prepend(str(BENCH))
    spec = importlib.util.spec_from_file_location(name, BENCH / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wide_teacher(path):
    from mmengine.config import Config

    from lckd_mm.hosts import build_model

    cfg = Config.fromfile(ROOT / 'configs/demo/fcn_r18-w32_1xb8-digit-scenes-96x96.py')
    torch.manual_seed(0)
    torch.save(dict(state_dict=build_model(cfg.model, 'mmseg').state_dict()), path)
    return path


def small_data(root):
    roots = (f'{which}_dataloader.dataset.data_root={root}' for which in ('train', 'val', 'test'))
    return ('--cfg-options', *roots, 'train_dataloader.batch_size=2')


@pytest.mark.skipif(importlib.util.find_spec('mmrazor') is not None, reason='mmrazor is installed')
def test_the_razor_bench_says_what_to_install():
    out = subprocess.run([sys.executable, '-W', 'ignore', RAZOR], capture_output=True, text=True, cwd=ROOT)
    assert out.returncode == 1
    (line,) = out.stderr.splitlines()
    assert line.startswith('error: mmrazor is not installed for ')
    assert line.endswith('at the top of tools/bench/razor.py, or leave it out with --sides lckd_mm alone')


def test_the_razor_bench_wants_a_teacher(tmp_path):
    command = [sys.executable, '-W', 'ignore', RAZOR, '--sides', 'lckd_mm', '--teacher', 'absent.pth']
    out = subprocess.run([*command, '--work-dir', tmp_path], capture_output=True, text=True, cwd=ROOT)
    assert out.returncode == 1
    assert "no teacher at 'absent.pth'; train it with `python tools/demo.py --only teacher`" in out.stderr


@pytest.mark.full
@pytest.mark.skipif(
    not list(importlib.metadata.distributions(name='mmsegmentation')),
    reason="the bench's student alone runs without lckd_mm, and then the forks' mmengine does not find mmseg:: configs",
)
def test_our_half_of_the_razor_bench_trains(tmp_path, scenes):
    teacher = wide_teacher(tmp_path / 'wide.pth')
    command = (RAZOR, '--sides', 'lckd_mm', 'alone', '--rounds', 1, '--steps', 2, '--warmup', 1, '--teacher', teacher)
    text = run(*command, '--work-dir', tmp_path / 'runs', '--json', tmp_path / 'out.json', *small_data(scenes))
    result = json.loads((tmp_path / 'out.json').read_text())
    assert result['config']['lckd_mm']['lines'] == 15
    (ours,), (alone,) = result['rounds']['lckd_mm'], result['rounds']['alone']
    assert all(ours[key] > 0 for key in ('step_ms', 'cpu_ms', 'iteration_ms', 'peak_step', 'grown'))
    # The student alone, and nothing of the teacher, whatever the rest of the file.
    assert ours['plain_student']
    assert (ours['weights'], ours['tensors']) == (alone['weights'], alone['tensors'])
    assert ours['parameters'] == alone['parameters']
    assert '| lines of config | 15 |  |' in text
    assert '| plain mmseg loads it strictly | yes | yes |' in text


def test_both_configs_of_the_razor_bench_have_the_same_nets(monkeypatch):
    from mmengine.config import Config

    monkeypatch.chdir(ROOT)
    side = module_of('razor_side', monkeypatch)
    ours, theirs = (Config.fromfile(side.CONFIGS[name]) for name in ('lckd_mm', 'mmrazor'))
    alone = Config.fromfile(side.CONFIGS['alone'])

    def plain(model):
        return {k: v for k, v in model.to_dict().items() if k != '_scope_'}

    assert plain(theirs.model.architecture) == plain(ours.model.student) == plain(alone.model)
    assert plain(theirs.model.teacher) == plain(Config.fromfile(ours.model.teacher.model).model)
    for key in ('train_dataloader', 'optim_wrapper', 'param_scheduler', 'default_hooks', 'randomness'):
        assert ours[key] == theirs[key] == alone[key]


def test_the_size_of_a_config_counts_neither_comments_nor_line_breaks(monkeypatch, tmp_path):
    razor = module_of('razor', monkeypatch)
    (tmp_path / 'a.py').write_text("# why\n\nmodel = dict(type='A', size=2)  # so\n")
    (tmp_path / 'b.py').write_text("model = dict(\n    # why\n    type='A',\n    size=2\n)\n")
    sizes = [razor.size_of(tmp_path / name) for name in ('a.py', 'b.py')]
    assert [size['lines'] for size in sizes] == [1, 4]
    assert [size['tokens'] for size in sizes] == [12, 12]


@pytest.mark.full
def test_mmrazor_computes_what_we_compute(tmp_path, scenes):
    """Runs where mmrazor is installed: .venv-razor/bin/python -m pytest."""
    pytest.importorskip('mmrazor')
    teacher = wide_teacher(tmp_path / 'wide.pth')
    options = {'train_dataloader.dataset.data_root': str(scenes)}
    run(BENCH / 'razor_compare.py', tmp_path, teacher, teacher, '--steps', 2, '--out', tmp_path / 'out.json',
        '--options', json.dumps(options))  # fmt: skip
    found = json.loads((tmp_path / 'out.json').read_text())
    assert found['same_teacher']
    assert set(found['losses']) == {'loss', 'decode.loss_ce', 'aux.loss_ce', 'loss_kd', 'loss_cwd'}
    assert max(found['losses'].values()) < 1e-12
    assert found['gradient'] < 1e-10
    assert found['batchmean'] == pytest.approx(144)
    for mistake in found['mistakes'][1:]:
        assert 'trains' in mistake['mmrazor']
        assert mistake['lckd_mm'].startswith('ValueError: ')
