"""Studies: how a grid expands, that runs are kept, begun anew and resumed, and what the tables say."""

import itertools
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from run_helpers import ROOT, forked_trainings

from lckd_mm.cli import run_tool
from lckd_mm.config import student_config
from lckd_mm.hosts import build_model
from lckd_mm.reporting.seeds import bootstrap, holm, probability

BENCH = ROOT / 'tools' / 'bench'
QUICK = ('train_cfg.max_epochs=1', 'train_cfg.val_interval=1', 'train_dataloader.dataset.subset=30',
         'param_scheduler.0.T_max=1', 'default_hooks.checkpoint.interval=1')  # fmt: skip
STUDY = """
title = 'A small one'
metric = dict(key='accuracy/top1', title='accuracy, %')
work_dir = 'unused'
_digits = 'configs/digits/{}_1xb30_digits300.py'
axes = dict(
    weight=dict(low={'model.terms.loss_kd.weight': 0.5}, high={'model.terms.loss_kd.weight': 2.0}),
    noise={'0 %': {}, '30 %': {'train_dataloader.dataset.label_noise': 0.3}},
)
runs = dict(
    kd=dict(config=_digits.format('kd_wrn16-4_wrn10-1'), title='KD', axes=['weight', 'noise'], against='alone',
            needs={'model.teacher.checkpoint': 'teacher'}),
    teacher=dict(config='configs/digits/wrn16-4_1xb30_digits.py', title='teacher',
                 options={'model.backbone.depth': 16}),
    alone=dict(config=_digits.format('wrn10-1'), title='alone', axes=['noise']),
)
skip = [dict(run='kd', weight='high', noise='30 %')]
picture = dict(x='noise')
"""


@pytest.fixture
def study(monkeypatch):
    """The module."""
    monkeypatch.syspath_prepend(str(BENCH))
    import study

    return study


@pytest.fixture
def file(tmp_path):
    path = tmp_path / 'small.py'
    path.write_text(STUDY)
    return path


@pytest.fixture
def call(study, monkeypatch, capsys):
    """Runs the tool in this process, which has its libraries already; the trainings have processes of their own."""

    def run(*command):
        with monkeypatch.context() as patch:
            patch.chdir(ROOT)
            # Another call reads its configs again.
            study.read.cache_clear()
            status = run_tool(study.main, [str(word) for word in command])
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope='module')
def forks():
    yield from forked_trainings('mmpretrain')


@pytest.fixture
def forked(study, forks, monkeypatch):
    """The study's trainings are forks of one process, which has their libraries already."""
    lock = threading.Lock()

    def run(command, stdout, **_):
        assert command[:4] == [sys.executable, '-W', 'ignore', 'tools/train.py'] and command[5] == '--work-dir'
        with lock:
            (status,), _ = forks(command[4], command[6], *command[7:], log=stdout.name)
        return SimpleNamespace(returncode=status)

    monkeypatch.setattr(study, 'subprocess', SimpleNamespace(run=run, STDOUT=subprocess.STDOUT))


def test_a_grid_expands_in_the_order_of_needs(study, file):
    made = study.Study(file, cfg_options=['train_cfg.max_epochs=1', 'default_hooks.checkpoint.interval=1'])
    names = [c.name for c in made.cells]
    assert names == ['teacher', 'alone-0-%', 'alone-30-%', 'kd-low-0-%', 'kd-low-30-%', 'kd-high-0-%']
    cell = made.cells[4]
    assert made.needs(cell) == {'model.teacher.checkpoint': study.Cell('teacher')}
    assert made.against(cell).name == 'alone-30-%'
    assert made.title_of(cell) == 'KD, low, 30 %'
    own = ['model.terms.loss_kd.weight=0.5', 'train_dataloader.dataset.label_noise=0.3']
    assert made.options(cell) == [*own, 'train_cfg.max_epochs=1', 'default_hooks.checkpoint.interval=1']
    # Options of distillation hooks fit no plain training.
    assert made.options(made.cells[1]) == ['train_cfg.max_epochs=1']
    assert [c.name for c in made.chosen(['kd'])] == names
    assert [c.name for c in made.chosen(['alone'])] == ['alone-0-%', 'alone-30-%']
    recipes = {made.recipe(c, 0) for c in made.cells}
    assert len(recipes) == 6
    # The option that takes the other run's checkpoint is part of the recipe.
    file.write_text(STUDY.replace("'model.teacher.checkpoint': 'teacher'", "'load_from': 'teacher'"))
    assert study.Study(file, cfg_options=made.cfg_options).recipe(cell, 0) not in recipes


@pytest.mark.parametrize('name', Config.fromfile(BENCH / 'studies/methods.py').runs)
def test_every_method_on_the_digits_builds(study, monkeypatch, name):
    monkeypatch.chdir(ROOT)
    from measure import build_for_training

    made = study.Study(BENCH / 'studies/methods.py')
    cell = study.Cell(name)
    cfg = Config.fromfile(made.runs[name]['config'])
    cfg.merge_from_dict(made.own_options(cell))
    if 'student' in cfg.model:
        cfg.model.dry_run_size = 32  # nothing but the cost depends on it
    model = build_for_training(cfg, torch.device('cpu'))
    assert set(cfg.model.get('terms', ())) == made.terms(cell)
    # By name and by architecture the student is its own baseline.
    student = build_model(student_config(cfg).model, cfg.default_scope)
    assert list(model.state_dict()) == list(student.state_dict())
    DefaultScope._instance_dict.clear()


@pytest.mark.full
@pytest.mark.parametrize('name', Config.fromfile(BENCH / 'studies/regions_queries.py').runs)
def test_the_costs_of_regions_and_queries_can_be_measured(study, monkeypatch, name):
    """Each run has one term, or none."""
    monkeypatch.chdir(ROOT)
    from measure import build_for_training

    made = study.Study(BENCH / 'studies/regions_queries.py')
    cfg = Config.fromfile(made.runs[name]['config'])
    cfg.merge_from_dict(made.own_options(study.Cell(name)))
    terms = dict(features='loss_pkd', queries='loss_queries', matched='loss_matched', regions='loss_kd')
    model = build_for_training(cfg, torch.device('cpu'))
    assert [*getattr(model, 'terms', ())] == [terms[kind] for kind in name.split('-')[1:] if kind in terms]
    DefaultScope._instance_dict.clear()


@pytest.mark.parametrize(
    ('old', 'new', 'says'),
    [
        ("title = 'A small one'", '', 'title'),
        ('picture', 'pictures', "'pictures'"),
        ("title='KD', axes", 'axes', "'kd': .* title"),
        ("against='alone'", "against='nobody'", "'nobody'"),
        ("axes=['weight', 'noise']", "axes=['weight', 'size']", "'size'"),
        ("x='noise'", "x='size'", 'picture'),
        ("title='alone', axes", "title='alone', needs=dict(load_from='kd'), axes", "'weight'"),
        ("title='alone', axes", "title='alone', seed=0, axes", "'kd': against='alone'"),
        ("title='teacher',", "title='teacher', needs=dict(load_from='teacher'),", 'teacher.* need one another'),
        ("_digits.format('wrn10-1'), title='alone'", "'configs/absent.py', title='alone'", "'configs/absent.py'"),
    ],
)
def test_a_study_is_checked(study, file, old, new, says):
    assert old in STUDY
    file.write_text(STUDY.replace(old, new))
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        study.Study(file)


def test_the_interval_is_the_bootstraps():
    gains = [0.3, 1.1, -0.2, 0.9, 0.4]
    # All 3125 resamples; those that scipy draws differ by the chance of 9,999 draws.
    means = sorted(statistics.mean(draw) for draw in itertools.product(gains, repeat=5))
    low, high = bootstrap(gains)
    assert low == pytest.approx(means[78], abs=0.03) and high == pytest.approx(means[-79], abs=0.03)
    assert bootstrap(gains) == (low, high)
    assert bootstrap([0.5] * 5) == pytest.approx((0.5, 0.5))


def logged(folder, *entries):
    folder = folder / 'x' / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text(''.join(json.dumps(e) + '\n' for e in entries))


def test_nets_that_learn_together_have_a_row_each(study, tmp_path):
    made = study.Study(BENCH / 'studies' / 'methods.py', tmp_path)
    training = {'loss': 2.0, 'net0.loss_task': 0.5, 'net1.loss_task': 0.5, 'net0.loss_kd': 0.4, 'net1.loss_kd': 0.6}
    validated = {'accuracy/top1': 90.0, 'net1/accuracy/top1': 91.0, 'ensemble/accuracy/top1': 92.0}
    logged(tmp_path / 'seed0' / 'online-kd', training, validated)
    logged(tmp_path / 'seed0' / 'alone', {'loss': 1.0}, {'accuracy/top1': 89.0})
    cells = {name: study.Cell(name) for name in ('alone', 'online-kd')}
    found = {cell: {0: made.result(cell, 0)} for cell in cells.values()}
    assert found[cells['online-kd']][0] == {'score': 90.0, 'also net1': 91.0, 'also ensemble': 92.0, 'share kd': 0.5}
    title, base = (made.title_of(cells[name]) for name in ('online-kd', 'alone'))
    assert study.markdown(made, study.rows_of(made, found), 1).splitlines() == [
        f'| 1 seed | accuracy, % | gain over {base} | 95 % interval | better in | part of the loss |',
        '|---|---|---|---|---|---|',
        f'| {base} | 89.00 |  |  |  |  |',
        f'| {title}: net0 | 90.00 | +1.00 |  | 1 of 1 | kd 50% |',
        f'| {title}: net1 | 91.00 | +2.00 |  | 1 of 1 |  |',
        f'| {title}: ensemble | 92.00 | +3.00 |  | 1 of 1 |  |',
    ]


def test_gains_are_paired_by_seed_and_a_missing_run_is_said(study, file, tmp_path):
    made = study.Study(file, tmp_path)
    cells = {c.name: c for c in made.cells}
    training = {'loss': 1.0, 'loss_kd': 0.25, 'decode.loss_ce': 0.75}
    for seed, alone in enumerate((80.0, 90.0, 70.0, 75.0, 85.0, 80.0)):
        logged(tmp_path / f'seed{seed}' / 'alone-0-%', {'accuracy/top1': alone})
    for seed, kd in enumerate((82.0, 91.0, 72.0, 76.0, 87.0)):
        logged(tmp_path / f'seed{seed}' / 'kd-low-0-%', training, {'accuracy/top1': kd})

    def table(alone, kd):
        runs = {cells['alone-0-%']: range(alone), cells['kd-low-0-%']: range(kd)}
        found = {cell: {seed: made.result(cell, seed) for seed in seeds} for cell, seeds in runs.items()}
        return found, study.markdown(made, study.rows_of(made, found), alone).splitlines()

    found, lines = table(6, 5)
    assert lines[2] == '| alone, 0 % | 80.00 ± 7.07 |  |  |  |  |'
    assert lines[3] == '| KD, low, 0 % (5 seeds) | 81.60 ± 7.77 | **+1.60** | +1.20 to +2.00 | 5 of 5 | kd 25% |'
    # Fewer than five seeds have no interval, and no gain of theirs is bold.
    assert table(5, 4)[1][3] == '| KD, low, 0 % (4 seeds) | 80.25 ± 8.26 | +1.50 |  | 4 of 4 | kd 25% |'
    assert study.draw(made, study.rows_of(made, found), found, tmp_path / 'x.png').stat().st_size > 5000


def test_a_run_without_its_validation_does_not_take_the_table_with_it(study, file, tmp_path, capsys):
    made = study.Study(file, tmp_path)
    cells = [c for c in made.cells if c.run in ('teacher', 'alone')]
    for cell in cells:
        entries = [{'loss': 1.0}] if cell.name == 'alone-30-%' else [{'loss': 1.0}, {'accuracy/top1': 80.0}]
        logged(made.folder(cell, 0), *entries)
        (made.folder(cell, 0) / 'recipe').write_text(made.recipe(cell, 0))
    study.report(made, cells, [0])
    out = capsys.readouterr().out
    assert "left out: alone-30-%, seed 0: its log has no 'accuracy/top1'" in out
    assert '| teacher | 80.00 |' in out and '| alone, 0 % | 80.00 |' in out and '| alone, 30 %' not in out


def test_a_needed_checkpoint_that_is_gone_is_named(study, file, tmp_path):
    made = study.Study(file, tmp_path)
    (kd,) = [c for c in made.cells if c.run == 'kd'][:1]
    for need in made.needs(kd).values():
        made.folder(need, 0).mkdir(parents=True)
        (made.folder(need, 0) / 'recipe').write_text(made.recipe(need, 0))
        (made.folder(need, 0) / 'last_checkpoint').write_text(str(tmp_path / 'gone.pth'))
    with pytest.raises(RuntimeError, match=r'teacher.* is gone'):
        made.train(kd, 0)


def test_a_path_that_options_would_not_survive_is_refused_at_once(call, file, tmp_path):
    status, _, errors = call(file, '--runs', 'kd', '--work-dir', tmp_path / 'my runs')
    assert status == 1 and "/my runs'" in errors and '--work-dir' in errors
    assert not (tmp_path / 'my runs').exists()


def test_an_interruption_leaves_the_rest_alone(study, file, tmp_path, monkeypatch):
    made, begun, interrupted = study.Study(file, tmp_path), [], threading.Event()

    def train(cell, seed):
        begun.append(cell.name)
        assert interrupted.wait(60)  # as trainings that end by the same Ctrl-C

    def wait(futures):
        while len(begun) < 1:
            time.sleep(0.01)
        threading.Timer(0.2, interrupted.set).start()
        raise KeyboardInterrupt

    monkeypatch.setattr(made, 'train', train)
    monkeypatch.setattr(study, 'wait', wait)
    cells = [c for c in made.cells if c.run != 'kd']
    with pytest.raises(KeyboardInterrupt):
        study.run_all(made, cells, [0, 1, 2], 1)
    assert begun == ['teacher'] and not [t for t in threading.enumerate() if 'ThreadPool' in t.name]


@pytest.mark.full
@pytest.mark.timeout(600)
def test_runs_are_kept_and_begun_anew_when_they_change(call, forked, file, tmp_path):
    work_dir, text = tmp_path / 'runs', STUDY.replace("'30 %': {'train_dataloader.dataset.label_noise': 0.3}", '')
    file.write_text(text)
    command = (file, '--seeds', 1, '--work-dir', work_dir, '--cfg-options', *QUICK)
    status, out, errors = call(*command)
    assert status == 0, errors
    record = json.loads((work_dir / 'small.json').read_text())
    assert list(record) == ['kd-low-0-%', 'kd-high-0-%', 'teacher', 'alone-0-%']
    assert 0 < record['kd-low-0-%']['runs']['0']['share kd'] < 1
    assert set(record['teacher']['runs']['0']) == {'score'}
    assert '| KD, high, 0 % | ' in out and (work_dir / 'small.png').stat().st_size > 5000
    times = {path.parent.name: path.stat().st_mtime_ns for path in work_dir.glob('seed0/*/train.log')}
    assert len(times) == 4
    # A second call has nothing to train; a teacher that changes takes with it what it has taught, and nothing else.
    assert call(*command)[1].startswith('| 1 seed ')
    file.write_text(text.replace("{'model.backbone.depth': 16}", "{'optim_wrapper.optimizer.lr': 0.01}"))
    _, out, _ = call(file, '--runs', 'teacher', 'alone', *command[1:])
    assert out.startswith('[1/1] seed 0, teacher')
    assert 'KD' not in call(*command[:5], '--report', *command[5:])[1]  # they are of another teacher
    now = {path.parent.name: path.stat().st_mtime_ns for path in work_dir.glob('seed0/*/train.log')}
    assert {name for name in now if now[name] != times[name]} == {'teacher'}


@pytest.mark.full
def test_a_run_that_fails_is_named_and_the_rest_goes_on(call, file, tmp_path):
    file.write_text(STUDY.replace("'model.backbone.depth': 16", "'model.backbone.depth': 17"))
    command = (file, '--seeds', 1, '--work-dir', tmp_path / 'runs', '--runs', 'kd', '--cfg-options', *QUICK)
    status, out, errors = call(*command)
    assert status == 1
    assert '4 of 6 runs failed: teacher, seed 0: error: WideResNet: depth ' in errors and 'train.log' in errors
    assert 'kd-low-0-%, seed 0: what it needs failed' in errors
    assert '| alone, 30 % | ' in out


@pytest.mark.full
@pytest.mark.timeout(1500)
def test_an_interrupted_run_is_resumed(file, tmp_path):
    work_dir = tmp_path / 'runs'
    options = (o.replace('max_epochs=1', 'max_epochs=15') for o in QUICK)
    command = (file, '--seeds', 1, '--runs', 'teacher', '--work-dir', work_dir, '--cfg-options', *options)
    argv = [sys.executable, '-W', 'ignore', str(BENCH / 'study.py'), *map(str, command)]
    process = subprocess.Popen(argv, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL)
    folder, end = work_dir / 'seed0' / 'teacher', time.monotonic() + 600
    while not (folder / 'last_checkpoint').exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / 'recipe').exists()
    # Not in this process, whose configs are laid out otherwise, so that the run would begin anew.
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'resumed epoch: ' in (folder / 'train.log').read_text()
    assert len(list(folder.glob('*/vis_data/scalars.json'))) == 2


def test_costs_are_compared_with_the_student_alone_or_the_run_that_a_study_names(study, tmp_path):
    folder = BENCH / 'studies'
    assert study.Study(folder / 'methods.py', tmp_path).base == 'alone'
    for name, methods in (
        ('dense', {'pkd', 'mgd', 'swl2', 'bckd', 'crosskd'}),
        ('dense_segmentation', {'kd-standardised', 'cwd', 'cwd-feature', 'dist', 'mgd'}),
    ):
        dense = study.Study(folder / f'{name}.py', tmp_path)
        assert dense.base == 'kd' and methods <= dense.runs.keys()


def test_scores_of_the_test_split_have_holms_p_values(study, file, tmp_path, monkeypatch, capsys):
    made = study.Study(file, tmp_path, tests=True)
    cells = {c.name: c for c in made.cells}
    scores = {'alone-0-%': (80.0, 82.0, 81.0), 'kd-low-0-%': (83.0, 86.0, 85.0), 'kd-high-0-%': (81.0, 82.0, 82.0)}
    for name, tested in scores.items():
        for seed, score in enumerate(tested):
            folder = made.folder(cells[name], seed)
            logged(folder, {'loss': 1.0}, {'accuracy/top1': 99.0})
            (folder / 'recipe').write_text(made.recipe(cells[name], seed))
            assert made.finished(cells[name], seed) and not made.complete(cells[name], seed)
            (folder / 'test.json').write_text(json.dumps({'accuracy/top1': score, 'accuracy/top5': 99.5}))
            assert made.complete(cells[name], seed)
    found = {cells[name]: {seed: made.result(cells[name], seed) for seed in range(3)} for name in scores}
    assert found[cells['alone-0-%']][0] == {'score': 99.0, 'test accuracy/top5': 99.5, 'test': 80.0}
    table = study.markdown(made, study.rows_of(made, found), 3).splitlines()
    assert table[0].startswith('| 3 seeds | accuracy, %, test | ') and '| better in | p (Holm) | part' in table[0]
    assert table[2] == '| alone, 0 % | 81.00 ± 1.00 |  |  |  |  |  |'
    # Gains 3, 4, 4 and 1, 0, 1: t is 11 and 2, with two degrees of freedom; the smaller p counts twice.
    assert '| 3 of 3 | 0.016 | ' in table[3] and '| 2 of 3 | 0.184 | ' in table[4]
    # All that is written says so, and stands beside the validation's.
    drawn = []
    monkeypatch.setattr(study, 'curve', lambda axis, values, **_: drawn.append(values))
    study.report(made, list(found), [0, 1, 2])
    written = {f'small-test.{suffix}' for suffix in ('json', 'md', 'png')}
    assert {p.name for p in tmp_path.glob('small*')} == {'small.py', *written}
    assert drawn[-1] == [{0: 80.0}, {0: 82.0}, {0: 81.0}]
    # Digits have no third split.
    assert 'The test data of these configs are their validation data.' in (tmp_path / 'small-test.md').read_text()
    (folder / 'test.json').write_text(json.dumps({'accuracy/top5': 99.5}))
    capsys.readouterr()
    study.report(made, list(found), [0, 1, 2])
    out = capsys.readouterr().out
    assert f"left out: kd-high-0-%, seed 2: {folder}/test.json has no 'accuracy/top1'" in out and '(2 seeds)' in out


def test_a_stored_record_prints_the_table_of_its_report(study, file, tmp_path, call, capsys):
    made = study.Study(file, tmp_path)
    cells = {c.name: c for c in made.cells}
    for name, of in {'alone-0-%': (80.0, 81.0), 'kd-low-0-%': (83.0, 82.5)}.items():
        for seed, score in enumerate(of):
            folder = made.folder(cells[name], seed)
            logged(folder, {'loss': 1.0}, {'accuracy/top1': score})
            (folder / 'recipe').write_text(made.recipe(cells[name], seed))
            (folder / 'test.json').write_text(json.dumps({'accuracy/top1': score - 1}))
    for tests in ([], ['--test']):
        study.report(study.Study(file, tmp_path, tests=bool(tests)), made.cells, [0, 1])
        capsys.readouterr()
        stem = tmp_path / f'small{"-test" * len(tests)}'
        status, out, errors = call(file, *tests, '--record', stem.with_suffix('.json'))
        assert status == 0 and out, errors
        assert stem.with_suffix('.md').read_text().startswith(out)
    file.write_text(STUDY.replace("'alone', axes", "'other', axes"))
    status, _, errors = call(file, '--record', tmp_path / 'small.json')
    assert status == 1 and "has no run 'alone-0-%' (alone, 0 %)" in errors


def test_holms_correction():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06]) and holm([0.7, 0.6]) == [1.0, 1.0]
    assert holm([math.nan, 0.001, 0.02]) == pytest.approx([math.nan, 0.002, 0.02], nan_ok=True)
    assert [probability(p) for p in (0.0004, 0.001, 0.25)] == ['< 0.001', '0.001', '0.250']


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_run_is_tested_once_and_again_when_it_changes(call, file, tmp_path):
    command = (file, '--seeds', 1, '--runs', 'alone', '--work-dir', tmp_path / 'runs', '--cfg-options', *QUICK)
    assert call(*command)[0] == 0
    folder = tmp_path / 'runs/seed0/alone-0-%'
    assert not (folder / 'test.json').exists()
    status, out, errors = call(*command, '--test')
    assert status == 0 and '| accuracy, %, test |' in out, errors
    # Here the test split is the validation's.
    run = json.loads((tmp_path / 'runs/small-test.json').read_text())['alone-0-%']['runs']['0']
    assert run['test'] == pytest.approx(run['score'], abs=1e-3)
    before = (folder / 'test.json').stat().st_mtime_ns
    assert call(*command, '--test')[0] == 0 and (folder / 'test.json').stat().st_mtime_ns == before
    (folder / 'recipe').unlink()
    assert call(*command, '--test')[0] == 0 and (folder / 'test.json').stat().st_mtime_ns > before


@pytest.mark.parametrize('path', sorted((ROOT / 'tools/bench/studies').glob('*.py')), ids=lambda p: p.stem)
def test_the_options_of_a_study_reach_the_config(path, study):
    """As the command line reads them, also lists of dicts."""
    from lckd_mm.cli import Options

    made = study.Study(path)
    for cell in made.cells:
        for option, value in zip(made.options(cell), made.own_options(cell).values(), strict=True):
            read = Options._parse_iterable(option.partition('=')[2])
            assert read == value and type(read) is type(value), option


def test_an_option_that_is_no_python():
    from lckd_mm.cli import Options

    assert Options._parse_iterable("[{'type': 'A', 'x': [1, 2]}]") == [dict(type='A', x=[1, 2])]
    written = "[dict(type='A', x=[1, 2], y=dict(z=(3, 4))), {'b': dict()}]"
    assert Options._parse_iterable(written) == [dict(type='A', x=[1, 2], y=dict(z=(3, 4))), dict(b={})]
    assert Options._parse_iterable('dict(a=1)') == dict(a=1)
    assert Options._parse_iterable('data/{split}.txt') == 'data/{split}.txt' and Options._parse_iterable('1,2') == [
        1,
        2,
    ]
    with pytest.raises(ValueError, match=r'--cfg-options: .* is no value of Python; write dicts as in'):
        Options._parse_iterable('[{type: A}]')
    for written in ('[dict(type=A)]', "[dict(open('x'))]", '[dict(**{})]', "dict(a=1).get('a')"):
        with pytest.raises(ValueError, match=r'is no value of Python'):
            Options._parse_iterable(written)
