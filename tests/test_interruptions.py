"""Runs that are killed, cut off and resumed: they end as if nothing had happened, to the bit."""

import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from run_helpers import FULL, config, count, distiller, forked_trainings, run, scenes, segmentor, validation

from lckd_mm.cli.ending import interruptible, way_on
from lckd_mm.contexts import preserved_rng
from lckd_mm.errors import WriteError
from lckd_mm.hosts import build_model
from lckd_mm.reporting import read_history
from lckd_mm.storage.files import newest_good, remove_partials, write_whole

ITERS = 12


@pytest.fixture(scope='module')
def forks():
    yield from forked_trainings('mmseg')


@pytest.fixture(scope='module')
def distillation(scenes, tmp_path_factory):
    """A short distillation with all that has a state: connectors, EMA, schedules, dropout, random augmentation."""
    folder = tmp_path_factory.mktemp('distillation')
    teacher, path = segmentor(8), folder / 'teacher.pth'
    with preserved_rng(seed=7):
        torch.save(dict(state_dict=build_model(teacher, 'mmseg').state_dict()), path)

    def write(workers=0, epochs=None, persistent=False, **extra):
        model = distiller('mmseg', segmentor(4), teacher, path, lipschitz='share:0.3')
        hooks = [
            dict(type='EMAHook', momentum=0.1, update_buffers=True),
            dict(type='SyncBuffersHook'),
            dict(type='lckd_mm.LossWeightHook', term='loss_kd', schedule='cosine', end=10),
            dict(type='lckd_mm.ConnectorWarmupHook', end=3, by='iter'),
        ]
        cfg = config('mmseg', scenes, folder, model, ITERS, custom_hooks=hooks, **validation(scenes))
        cfg.train_dataloader.update(num_workers=workers, persistent_workers=persistent)
        cfg.train_cfg.val_interval = 6
        cfg.default_hooks.logger.interval = 1
        cfg.default_hooks.checkpoint = dict(
            type='CheckpointHook', by_epoch=False, interval=3, max_keep_ckpts=1, save_best='mIoU', rule='greater'
        )
        if epochs:
            # 16 images, 4 at a time: 4 iterations an epoch
            cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=1)
            cfg.train_dataloader.batch_size = 4
            cfg.train_dataloader.sampler.type = 'DefaultSampler'
            cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)
            cfg.log_processor = {}
        cfg.merge_from_dict(extra)
        file = folder / f'{workers}-{epochs}-{persistent}.py'
        cfg.dump(file)
        return file

    return write


@pytest.fixture(scope='module')
def whole(forks, distillation, tmp_path_factory):
    """The folder of the run that nothing interrupts."""
    work_dir = tmp_path_factory.mktemp('whole')
    statuses, text = forks(distillation(), work_dir)
    assert statuses == [0], text[-3000:]
    assert last(work_dir)['meta']['iter'] == ITERS
    return work_dir


def assert_same(a, b, where=''):
    """Equal to the bit, but for times and paths."""
    passed_over = (
        'time',
        'memory',
        'cfg',
        'experiment_name',
        'mmengine_version',  # with the commit of the folder it runs in
        'last_ckpt',
        'best_ckpt',
        'loop_stage',
        'resumed_keys',
    )
    if isinstance(a, dict):
        keys = [{k for k in side if not any(word in str(k) for word in passed_over)} for side in (a, b)]
        assert keys[0] == keys[1], (where, keys[0] ^ keys[1])
        for key in keys[0]:
            assert_same(a[key], b[key], f'{where}.{key}')
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f'{where}[{i}]')
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    elif isinstance(a, HistoryBuffer):
        assert np.array_equal(a.data[0], b.data[0]), where
    else:
        assert a == b, where


def last(work_dir):
    saved = torch.load((work_dir / 'last_checkpoint').read_text(), weights_only=True)
    assert set(saved) >= {'state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers', 'message_hub', 'lckd_mm'}
    assert set(saved['lckd_mm']) == {'version', 'terms', 'random'}
    return saved


def losses(work_dir):
    """step -> what was logged of it; where a step was trained again, each time the same."""
    steps = {}
    for file in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            if 'loss' in entry:
                entry = {k: v for k, v in entry.items() if 'time' not in k and k != 'memory'}
                assert steps.setdefault(entry['step'], entry) == entry
    return steps


# What happens to a run of 12 iterations with a checkpoint every 3 and room for one.
PHASES = {
    'before the first checkpoint': dict(event='open', match=r'\.iter_3\.pth\..*partial$'),
    'temporary file opened': dict(event='open', match=r'\.iter_6\.pth\..*partial$'),
    'in the middle of a write': dict(event='open', match=r'\.iter_9\.pth\..*partial$', delay=0.0005),
    'written, not in place': dict(event='os.rename', match=r'\.iter_9\.pth\..*partial$'),
    'in place, last_checkpoint old': dict(event='open', match=r'/last_checkpoint$', count=2),
    'the outdated one about to go': dict(event='os.remove', match=r'iter_3\.pth$'),
}


KILLS = count(full=10, reduced=2)
FIRST = random.SystemRandom().randrange(len(PHASES))


@pytest.mark.parametrize('number', range(KILLS))
def test_killed_and_resumed_is_the_uninterrupted_run(number, forks, distillation, whole, tmp_path):
    """Half of the kills at random times, half in the phases of a checkpoint's writing; every second run twice."""
    if number < KILLS // 2:
        phase, kill = list(PHASES.items())[(FIRST + number) % len(PHASES)]
    else:
        # Some time after a random one of the 12 iterations has been logged.
        after, delay = random.SystemRandom().randint(1, ITERS), random.SystemRandom().uniform(0.0, 0.2)
        phase, kill = 'a random time', dict(event='open', match=r'scalars\.json$', count=after, delay=delay)
    work_dir = tmp_path / 'killed'
    statuses, text = forks(distillation(), work_dir, kill=kill)
    assert statuses == [-9], text[-3000:]
    found = sorted(p.name for p in work_dir.glob('*.pth')) + sorted(p.name[:14] for p in work_dir.glob('.*partial'))
    print(f'{phase} {kill}: {statuses} with {", ".join(found) or "no checkpoint"}')
    if number % 2:
        # and once more, somewhere in what is left of the run
        again = dict(
            kill, event='open', match=r'scalars\.json$', count=2, delay=random.SystemRandom().uniform(0.0, 0.5)
        )
        print('and again:', forks(distillation(), work_dir, '--resume', kill=again)[0])
    resumed_is_whole(forks, distillation, work_dir, whole)


def resumed_is_whole(forks, distillation, work_dir, whole):
    statuses, text = forks(distillation(), work_dir, '--resume')
    assert statuses == [0], text[-3000:]
    assert_same(last(work_dir), last(whole))
    assert losses(work_dir) == losses(whole)
    # one checkpoint kept, no temporary file left
    assert [p.name for p in work_dir.glob('iter_*.pth')] == [f'iter_{ITERS}.pth']
    assert not list(work_dir.glob('.*'))


@pytest.mark.full
@pytest.mark.parametrize('phase', PHASES)
def test_a_kill_in_each_phase_of_writing(phase, forks, distillation, whole, tmp_path):
    statuses, text = forks(distillation(), tmp_path / 'killed', kill=PHASES[phase])
    assert statuses == [-9], text[-3000:]
    resumed_is_whole(forks, distillation, tmp_path / 'killed', whole)


def validations(work_dir):
    return {entry['step']: entry for entry in read_history(work_dir, val_interval=6, total=ITERS).validation}


@pytest.mark.parametrize('when', ['before it', 'as the best is noted'])
def test_the_validation_that_a_kill_cut_off_is_made_up_for(when, forks, distillation, whole, tmp_path):
    if when == 'before it':
        # The last checkpoint stands: nothing is left to train, but to validate.
        at, logged, kill = ITERS, {6}, dict(event='os.remove', match=r'iter_9\.pth$')
    else:
        # The best has been saved, but not yet noted in the checkpoint of the same iteration.
        (best,) = whole.glob('best_*.pth')
        at = int(best.stem.rpartition('_')[2])
        logged = {step for step in (6, ITERS) if step <= at}
        kill = dict(event='open', match=rf'\.iter_{at}\.pth\..*partial$', count=2)
    work_dir = tmp_path / 'killed'
    statuses, text = forks(distillation(), work_dir, kill=kill)
    assert statuses == [-9], text[-3000:]
    assert last(work_dir)['meta']['iter'] == at and set(validations(work_dir)) == logged
    resumed_is_whole(forks, distillation, work_dir, whole)
    assert set(validations(work_dir)) == {6, 12} and validations(work_dir) == validations(whole)
    # Its result also decides which checkpoint is the best.
    best = [{p.name for p in folder.glob('best_*.pth')} for folder in (work_dir, whole)]
    assert best[0] == best[1] and len(best[0]) == 1


ITERATIONS, EPOCHS = dict(event='open', match=r'\.iter_9\.'), dict(event='open', match=r'\.epoch_2\.')
LOOPS = {
    'iterations, 2 workers, 2 ranks': (dict(workers=2), 2, ITERATIONS),
    'epochs': (dict(epochs=2), 1, EPOCHS),
    'iterations, 2 workers': (dict(workers=2), 1, ITERATIONS),
    'iterations, 2 ranks': ({}, 2, ITERATIONS),
    'epochs, 2 workers': (dict(epochs=2, workers=2), 1, EPOCHS),
    'epochs, 2 workers, 2 ranks': (dict(epochs=2, workers=2), 2, EPOCHS),
    'iterations, persistent workers': (dict(workers=2, persistent=True), 1, ITERATIONS),
    'no seed': ({'randomness.seed': None}, 1, ITERATIONS),
}


@pytest.mark.parametrize('loop', [
    pytest.param(name, marks=[] if i < 2 else pytest.mark.full) for i, name in enumerate(LOOPS)
])  # fmt: skip
def test_every_loop_resumes_to_the_bit(loop, forks, distillation, tmp_path):
    options, ranks, kill = LOOPS[loop]
    file = distillation(**options)
    # The checkpoint of the killed run is where a copy goes on: without a seed each run has its own.
    statuses, text = forks(file, tmp_path / 'killed', ranks=ranks, kill=kill)
    assert statuses[0] == -9, text[-3000:]
    shutil.copytree(tmp_path / 'killed', tmp_path / 'copy')
    for name in ('copy', 'killed'):
        where = tmp_path / name / 'last_checkpoint'
        where.write_text(where.read_text().replace('killed', name))
    statuses, text = forks(file, tmp_path / 'killed', '--resume', ranks=ranks)
    assert statuses == [0] * ranks, text[-3000:]
    assert 'not bit-identical' not in text
    saved = last(tmp_path / 'killed')
    assert len(saved['lckd_mm']['random']['ranks']) == ranks
    if options.get('randomness.seed', 3) is None:
        statuses, text = forks(file, tmp_path / 'copy', '--resume')
        assert statuses == [0], text[-3000:]
        assert_same(last(tmp_path / 'copy'), saved)
        return
    statuses, text = forks(file, tmp_path / 'whole', ranks=ranks)
    assert statuses == [0] * ranks, text[-3000:]
    assert_same(saved, last(tmp_path / 'whole'))


def test_what_cannot_be_kept_is_said(forks, distillation, tmp_path):
    """Persistent workers in epochs, a checkpoint from the middle of an epoch, another number of ranks."""
    file = distillation(epochs=3, workers=1, persistent=True, **{'default_hooks.checkpoint.max_keep_ckpts': -1})
    statuses, text = forks(file, tmp_path / 'run', kill=dict(event='open', match=r'\.epoch_3\.'))
    assert statuses == [-9], text[-3000:]
    saved = torch.load(tmp_path / 'run' / 'epoch_2.pth', weights_only=True)
    saved['meta']['iter'] -= 1
    saved['lckd_mm']['random']['ranks'] *= 2
    torch.save(saved, tmp_path / 'run' / 'epoch_2.pth')
    statuses, text = forks(file, tmp_path / 'run', '--resume')
    assert statuses == [0], text[-3000:]
    (line,) = [line for line in text.splitlines() if 'not bit-identical' in line]
    for reason in ('2 ranks instead of 1', 'persistent workers', 'middle of an epoch'):
        assert reason in line


def truncate(path):
    with open(path, 'r+b') as file:
        file.truncate(path.stat().st_size // 2)


def flip_a_bit(path):
    """In the middle of a tensor: torch.load alone reads such a file without a word."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    'cut short': (truncate, 'damaged'),
    'a flipped bit': (flip_a_bit, 'checksum'),
    'empty': (lambda path: path.write_bytes(b''), 'the file is empty'),
    'zeros': (lambda path: path.write_bytes(bytes(path.stat().st_size)), 'damaged or not a checkpoint'),
    'gone': (Path.unlink, None),
}


@pytest.fixture(scope='module')
def plain_run(scenes, tmp_path_factory):
    """A plain run of 6 iterations with three checkpoints, through the hooks that tools/train.py adds."""
    work_dir = tmp_path_factory.mktemp('plain') / 'run'
    cfg = config('mmseg', scenes, work_dir, segmentor(4), 6)
    cfg.default_hooks.update(
        checkpoint=dict(type='lckd_mm.SafeCheckpointHook', by_epoch=False, interval=2),
        resume=dict(type='lckd_mm.ResumeHook'),
    )
    cfg.dump(work_dir.parent / 'config.py')
    # One thread, as the forks have: sums in another order are not the same to the bit.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run(cfg)
    finally:
        torch.set_num_threads(threads)
    return work_dir


def test_outdated_checkpoints_go_with_mmengines_old_backend_too(scenes, tmp_path):
    cfg = config('mmseg', scenes, tmp_path, segmentor(4), 6, **validation(scenes))
    cfg.train_cfg.val_interval = 2
    cfg.default_hooks.checkpoint = dict(
        type='lckd_mm.SafeCheckpointHook', by_epoch=False, interval=2, max_keep_ckpts=1, save_best='mIoU',
        rule='less', file_client_args=dict(backend='disk'),
    )  # fmt: skip
    run(cfg)
    assert [path.name for path in tmp_path.glob('iter_*')] == ['iter_6.pth']
    assert len(list(tmp_path.glob('best_*'))) == 1


@pytest.fixture
def saved(plain_run, tmp_path):
    """A copy of the run's folder, last_checkpoint and all."""
    shutil.copytree(plain_run, tmp_path / 'run')
    (tmp_path / 'run' / 'last_checkpoint').write_text(str(tmp_path / 'run' / 'iter_6.pth'))
    return tmp_path / 'run'


@pytest.mark.parametrize('damage', DAMAGE)
def test_a_damaged_latest_file_is_passed_over_and_kept(damage, saved):
    harm, word = DAMAGE[damage]
    harm(saved / 'iter_6.pth')
    content = (saved / 'iter_6.pth').read_bytes() if word else None
    path, loaded, notes = newest_good(saved)
    assert Path(path).name == 'iter_4.pth' and loaded['meta']['iter'] == 4
    if word:
        assert len(notes) == 1 and word in notes[0] and 'iter_6.pth' in notes[0]
        assert (saved / 'iter_6.pth').read_bytes() == content


@pytest.mark.parametrize('pointer', ['', '/moved/elsewhere/iter_4.pth', '\0\0\0', None, 'best'])
def test_any_last_checkpoint_leads_to_a_good_file(pointer, saved):
    """Torn, empty, of a folder that was moved, or not there: written by mmengine's own hook in a killed run."""
    if pointer is None:
        (saved / 'last_checkpoint').unlink()
    else:
        (saved / 'last_checkpoint').write_text(pointer)
    path, _, notes = newest_good(saved)
    assert Path(path).name == ('iter_4.pth' if pointer and 'moved' in pointer else 'iter_6.pth')
    assert Path(path).parent == saved and not notes


def test_only_damaged_files_are_an_error_and_none_at_all_is_a_beginning(saved, tmp_path):
    for path in saved.glob('iter_*.pth'):
        truncate(path)
    with pytest.raises(ValueError, match=r'none of the 3 checkpoints.*iter_6.*iter_2.*move them away'):
        newest_good(saved)
    for path in saved.glob('iter_*.pth'):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r'last_checkpoint.*names .*iter_6.pth.*remove last_checkpoint'):
        newest_good(saved)
    assert newest_good(tmp_path / 'nothing') is None


def test_the_tool_says_what_it_passed_over(saved, forks, plain_run):
    config = plain_run.parent / 'config.py'
    truncate(saved / 'iter_6.pth')
    statuses, text = forks(config, saved, '--resume', str(saved / 'iter_6.pth'))
    (line,) = [line for line in text.splitlines() if line.startswith('error: ')]
    assert statuses == [1] and 'iter_6.pth' in line and 'damaged' in line
    assert line.endswith(f' {saved}/iter_4.pth')  # the newest good one beside it
    statuses, text = forks(config, saved, '--resume')
    assert statuses == [0], text[-3000:]
    log = '\n'.join(path.read_text() for path in saved.glob('*/*.log'))
    assert 'iter_6.pth' in log and 'it is skipped and left in place' in log
    assert f'continuing from {saved}/iter_4.pth' in log
    whole, again = (torch.load(folder / 'iter_6.pth', weights_only=True) for folder in (plain_run, saved))
    assert_same(again, whole)
    # A plain run's file has the random states beside mmengine's own keys, and no terms.
    assert set(again['lckd_mm']) == {'random'}


@pytest.mark.parametrize(('name', 'status', 'word'), [('SIGINT', 130, 'interrupted'), ('SIGTERM', -15, 'terminated')])
def test_an_interruption_ends_with_the_way_on(name, status, word, forks, plain_run, tmp_path):
    """Ctrl-C, or a scheduler's signal, during a write: one line is printed, and the exit status stays the same."""
    config, work_dir = plain_run.parent / 'config.py', tmp_path / 'run'
    kill = dict(event='open', match=r'\.iter_4\.pth', signal=name)
    statuses, text = forks(config, work_dir, kill=kill)
    assert statuses == [status] and 'Traceback' not in text, text[-3000:]
    line, again = text.splitlines()[-1].split(' with: ')
    assert line == f'{word}; the last checkpoint is {work_dir}/iter_2.pth; go on'
    assert again.split()[:2] == ['lckd_mm', 'train'] and again.endswith(' --resume')
    if FULL:
        statuses, text = forks(*again.split()[2:3], work_dir, '--resume')
        assert statuses == [0], text[-3000:]
        assert_same(torch.load(work_dir / 'iter_6.pth'), torch.load(plain_run / 'iter_6.pth'))


def test_processes_made_meanwhile_end_by_sigterm_as_ever():
    """A pool ends its processes by SIGTERM, which Python's handler would lose in one that has not begun to run."""
    handler = lambda: signal.getsignal(signal.SIGTERM)  # noqa: E731
    with interruptible(None, []):
        own = handler()
        process = os.fork()
        if process == 0:
            os._exit(handler() is not signal.SIG_DFL)
        assert os.waitpid(process, 0)[1] == 0 and handler() is own is not signal.SIG_DFL
    assert handler() is signal.SIG_DFL


def test_sigterm_ends_the_process_whatever_the_line_comes_to():
    process = os.fork()
    if process == 0:
        try:
            with interruptible(None, []):  # the handler fails, since there is no Runner
                os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGTERM


def test_a_rank_that_waits_for_others_is_ended_by_sigterm(tmp_path):
    """Python's handler would run only after the collective, which no other rank may ever join."""
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/meet', rank=0, world_size=1)
    try:
        with interruptible(None, []):
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ('argv', 'age', 'says'),
    [
        ('c.py', None, 'it has saved no checkpoint; begin again with: lckd_mm train c.py'),
        ('c.py', 9, 'it has saved no checkpoint; begin again with: lckd_mm train c.py'),
        ('c.py --resume=a.pth', None, 'no new checkpoint; begin again with: lckd_mm train c.py --resume=a.pth'),
        ('c.py --resume a.pth --amp', 9, 'new checkpoint; begin again with: lckd_mm train c.py --resume a.pth --amp'),
        ('c.py --resume', 9, 'it has saved no new checkpoint; begin again with: lckd_mm train c.py --resume'),
        ('c.py --resume a.pth --amp', 0, 'w/b.pth; go on with: lckd_mm train c.py --amp --resume'),
        ('c.py --resume --work-dir "a b"', 0, "go on with: lckd_mm train c.py --work-dir 'a b' --resume"),
        ('c.py --launcher pytorch', 0, 'the last checkpoint is w/b.pth; start it again with --resume'),
    ],
)
def test_the_command_that_goes_on(argv, age, says, tmp_path, monkeypatch):
    """An earlier training's checkpoint, older than this one, is not gone on from."""
    monkeypatch.chdir(tmp_path)
    write_whole(tmp_path / 'w' / 'b.pth', b'')
    pointer, begun = tmp_path / 'last_checkpoint', 100
    if age is not None:
        pointer.write_text(f'{tmp_path}/w/b.pth')
        os.utime(pointer, (begun + 1 - age,) * 2)
    runner = SimpleNamespace(work_dir=tmp_path, _resume='--resume' in argv)
    assert way_on(runner, shlex.split(argv), begun).endswith(says)


def test_a_full_disk_leaves_the_last_good_checkpoint(forks, plain_run, tmp_path):
    """A limit on the size of files, which needs no rights, from the second checkpoint on, with room for one file."""
    options = ['--cfg-options', 'default_hooks.checkpoint.max_keep_ckpts=1']
    limit = dict(event='open', match=r'\.iter_4\.pth', file_size=(plain_run / 'iter_2.pth').stat().st_size // 2)
    statuses, text = forks(plain_run.parent / 'config.py', tmp_path / 'run', *options, kill=limit)
    assert statuses == [1]
    work_dir = tmp_path / 'run'
    (line,) = [line for line in text.splitlines() if line.startswith('error: ')]
    assert f"'{work_dir}/iter_4.pth'" in line and f'last good checkpoint is {work_dir}/iter_2.pth' in line, line
    assert [p.name for p in work_dir.glob('*.pth')] == ['iter_2.pth'] and not list(work_dir.glob('.*'))
    assert (work_dir / 'last_checkpoint').read_text() == f'{work_dir}/iter_2.pth'
    statuses, text = forks(plain_run.parent / 'config.py', tmp_path / 'run', '--resume', *options)
    assert statuses == [0], text[-3000:]
    assert [p.name for p in (tmp_path / 'run').glob('*.pth')] == ['iter_6.pth']
    whole, again = (torch.load(d / 'iter_6.pth', weights_only=True) for d in (plain_run, tmp_path / 'run'))
    del whole['message_hub'], again['message_hub']  # which says how many are kept
    assert_same(again, whole)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / 'new' / 'file'
    write_whole(path, b'first')
    assert path.read_bytes() == b'first' and os.listdir(path.parent) == ['file']
    umask = os.umask(0o022)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    link = tmp_path / 'link'
    link.symlink_to(path)
    write_whole(link, b'second')
    assert link.is_symlink() and path.read_bytes() == b'second'

    def refuse(*_):
        raise OSError(28, 'No space left on device')

    for step in ('fsync', 'replace'):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, refuse)
            with pytest.raises(WriteError, match=r'cannot write .*file.*5 bytes.*No space left.*make room'):
                write_whole(path, b'third')
        assert path.read_bytes() == b'second' and os.listdir(path.parent) == ['file']
    write_whole('/dev/null', b'nothing')


def test_temporary_files_of_dead_processes_go_and_others_stay(tmp_path):
    dead = subprocess.Popen(['true'])
    dead.wait()
    here, other = socket.gethostname(), 'another.machine'
    names = {
        f'.iter_1.pth.{here}.{dead.pid}.partial': False,
        f'.iter_2.pth.{here}.{os.getppid()}.partial': True,
        f'.iter_3.pth.{other}.{dead.pid}.partial': True,
        f'.iter_4.pth.{other}.{dead.pid}.partial': False,
        '.mine.partial': True,
        'iter_5.pth': True,
    }
    for name in names:
        (tmp_path / name).write_bytes(b'')
    os.utime(tmp_path / f'.iter_4.pth.{other}.{dead.pid}.partial', (0, 0))
    assert sorted(remove_partials(tmp_path)) == [name for name, stays in names.items() if not stays]
    assert {p.name for p in tmp_path.iterdir()} == {name for name, stays in names.items() if stays}
