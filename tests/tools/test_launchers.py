"""The launch scripts, on recording stand-ins for srun, scontrol and python; the Makefile, on one for Python."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
SCRIPTS = ('dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh')
TASK = 'export MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}; exec "$@"'
ARGS = ('gpu part', 'a job', 'my config.py', 'work dirs/x y')

RECORD = """\
printf '%s\\0' "$@" > "$RECORD/{name}.argv"
env -0 > "$RECORD/{name}.env"
"""
SRUN = """\
while :; do case $1 in -p) shift 2 ;; -*) shift ;; *) break ;; esac; done
SLURM_JOB_ID=${SLURM_JOB_ID:-123456} exec "$@"
"""
SCONTROL = """\
printf '   JobState=RUNNING\\n   Command=%s\\n   WorkDir=/elsewhere\\n' "$FAKE_COMMAND"
"""
# `python -m venv DIR` makes DIR/bin/python, again this stand-in. Its check of mmcv fails $RECORD/failures times.
VENV_PYTHON = """\
#!/bin/sh
case "$*" in
  *'import nms_of_two_boxes'*)
    echo CHECK >> "$RECORD/calls"
    left=$(cat "$RECORD/failures")
    [ "$left" -gt 0 ] || exit 0
    echo $((left - 1)) > "$RECORD/failures"
    exit 1 ;;
  '-m venv '*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  '-c '*) ;;
  *)
    printf '%s' "$*" >> "$RECORD/calls"
    case "$*" in
      *mmcv*) printf ' [CFLAGS=%s OPS=%s JOBS=%s]' "$CFLAGS" "$MMCV_WITH_OPS" "$MAX_JOBS" >> "$RECORD/calls" ;;
    esac
    echo >> "$RECORD/calls" ;;
esac
"""


def write_executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment without what Slurm, torchrun, make or a person may have left in it."""
    ours = re.compile(
        r'SLURM_|SBATCH_|CUDA_VISIBLE|MAKE|MFLAGS|MASTER_|(GPUS(_PER_NODE)?|TASKS_PER_NODE|CPUS_PER_TASK|SRUN_ARGS|NNODES|'
        r'NODE_RANK|PORT|PYTHON(PATH)?|VENV|MAX_JOBS|CFLAGS|CXX|FAMILY|TEST_JOBS|(PYTEST|DEMO)_ARGS)$'
    )
    return {key: value for key, value in os.environ.items() if not ours.match(key)} | extra


class Bench:
    """A copy of the launch scripts in a folder with a space in its name, stand-ins first in PATH, and what they saw."""

    def __init__(self, root: Path):
        self.root = root
        self.repo = root / 'my repo'
        self.record = root / 'record'
        self.bin = root / 'bin'
        self.record.mkdir()
        (self.repo / 'tools').mkdir(parents=True)
        for script in (*SCRIPTS, '_launch.sh'):
            shutil.copy(REPO / 'tools' / script, self.repo / 'tools' / script)
        for name, tail in (('srun', SRUN), ('scontrol', SCONTROL), ('python', '')):
            write_executable(self.bin / name, '#!/bin/sh\n' + RECORD.format(name=name) + tail)

    def run(self, script: str | Path, *args: str, code: int = 0, **env: str) -> subprocess.CompletedProcess:
        path = script if isinstance(script, Path) else self.repo / 'tools' / script
        environment = clean_environment(RECORD=str(self.record), **env)
        environment['PATH'] = f'{self.bin}:{environment["PATH"]}'
        done = subprocess.run([path, *args], env=environment, cwd=self.root, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        return done

    def argv(self, name: str) -> list[str]:
        return (self.record / f'{name}.argv').read_text().split('\0')[:-1]

    def env(self, name: str) -> dict[str, str]:
        return dict(line.split('=', 1) for line in (self.record / f'{name}.env').read_text().split('\0') if line)

    def srun_options(self) -> list[str]:
        argv = self.argv('srun')
        return argv[: argv.index('bash')]

    def tool(self, name: str) -> str:
        return str(self.repo / 'tools' / name)


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


@pytest.mark.parametrize('script', SCRIPTS)
def test_script_is_executable_and_says_its_usage_when_arguments_are_missing(bench, script):
    assert os.access(REPO / 'tools' / script, os.X_OK)
    wanted = 4 if script.startswith('slurm') else 3 if script == 'dist_test.sh' else 2
    for count in range(wanted):
        done = bench.run(script, *['x'] * count, code=2)
        assert done.stderr.startswith(f'usage: tools/{script} ')
        assert done.stdout == ''
    assert list(bench.record.iterdir()) == []


@pytest.mark.parametrize('script', SCRIPTS)
def test_script_passes_shellcheck(script):
    shellcheck = shutil.which('shellcheck')
    if shellcheck is None:
        pytest.skip('shellcheck is not installed')
    done = subprocess.run([shellcheck, '-x', f'tools/{script}'], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# dist_*.sh


def test_dist_train_starts_torchrun_on_train(bench):
    bench.run('dist_train.sh', 'my config.py', '2', '--cfg-options', 'a=b c', PORT='29999')
    assert bench.argv('python') == [
        *('-m', 'torch.distributed.run', '--nnodes=1', '--node_rank=0', '--master_addr=127.0.0.1'),
        *('--master_port=29999', '--nproc_per_node=2'),
        *(bench.tool('train.py'), 'my config.py', '--launcher', 'pytorch', '--cfg-options', 'a=b c'),
    ]
    assert bench.env('python')['PYTHONPATH'] == str(bench.repo)


def test_dist_test_starts_torchrun_on_test(bench):
    knobs = dict(NNODES='2', NODE_RANK='1', MASTER_ADDR='10.0.0.7', PYTHONPATH='/mine')
    bench.run('dist_test.sh', 'my config.py', 'a b.pth', '4', '--out', 'x', **knobs)
    assert bench.argv('python') == [
        *('-m', 'torch.distributed.run', '--nnodes=2', '--node_rank=1', '--master_addr=10.0.0.7'),
        *('--master_port=29500', '--nproc_per_node=4'),  # nodes that share a job need the same port
        *(bench.tool('test.py'), 'my config.py', 'a b.pth', '--launcher', 'pytorch', '--out', 'x'),
    ]
    assert bench.env('python')['PYTHONPATH'] == f'{bench.repo}:/mine'


def test_dist_train_on_one_node_takes_a_port_in_a_free_range(bench):
    bench.run('dist_train.sh', 'c.py', '1')
    (port,) = (int(a.partition('=')[2]) for a in bench.argv('python') if a.startswith('--master_port='))
    assert 20000 <= port < 30000


@pytest.mark.parametrize('count', ['0', 'two', ''])
def test_dist_train_refuses_a_number_of_processes_that_is_none(bench, count):
    done = bench.run('dist_train.sh', 'c.py', count, code=2)
    assert f"the number of processes is '{count}'" in done.stderr


def test_the_interpreter_is_the_knob_else_that_of_the_environment_else_python(bench):
    write_executable(bench.repo / '.venv/bin/python', '#!/bin/sh\n' + RECORD.format(name='venv'))
    bench.run('dist_train.sh', 'c.py', '1')
    assert bench.argv('venv')[:2] == ['-m', 'torch.distributed.run']
    assert not (bench.record / 'python.argv').exists()
    bench.run('slurm_train.sh', *ARGS, PYTHON='python')
    assert bench.argv('python')[0] == '-u'


# slurm_*.sh outside an allocation


def test_slurm_train_asks_for_eight_gpus_on_one_node(bench):
    bench.run('slurm_train.sh', *ARGS, '--cfg-options', 'a=b c')
    task = [
        *('-u', bench.tool('train.py'), 'my config.py', '--work-dir=work dirs/x y', '--launcher', 'slurm'),
        *('--cfg-options', 'a=b c'),
    ]
    assert bench.argv('srun') == [
        *('-p', 'gpu part', '--job-name=a job', '--gres=gpu:8', '--ntasks=8', '--ntasks-per-node=8'),
        *('--cpus-per-task=5', '--kill-on-bad-exit=1', 'bash', '-c', TASK, 'task', 'python', *task),
    ]
    assert bench.argv('python') == task


def test_slurm_test_passes_config_and_checkpoint_with_spaces(bench):
    bench.run('slurm_test.sh', 'p', 'j', 'my config.py', 'work dirs/a b.pth', '--out', 'x y')
    assert bench.argv('srun')[:8] == [
        *('-p', 'p', '--job-name=j', '--gres=gpu:8', '--ntasks=8', '--ntasks-per-node=8', '--cpus-per-task=5'),
        '--kill-on-bad-exit=1',
    ]
    assert bench.argv('python') == [
        *('-u', bench.tool('test.py'), 'my config.py', 'work dirs/a b.pth', '--launcher', 'slurm', '--out', 'x y'),
    ]


@pytest.mark.parametrize(
    ('knobs', 'sizes'),
    [
        (dict(GPUS='4'), ['--gres=gpu:4', '--ntasks=4', '--ntasks-per-node=4', '--cpus-per-task=5']),
        (dict(GPUS='16'), ['--gres=gpu:8', '--ntasks=16', '--ntasks-per-node=8', '--cpus-per-task=5']),
        (
            dict(GPUS='6', GPUS_PER_NODE='2', CPUS_PER_TASK='3'),
            ['--gres=gpu:2', '--ntasks=6', '--ntasks-per-node=2', '--cpus-per-task=3'],
        ),
        (dict(GPUS='2', GPUS_PER_NODE='0'), ['--ntasks=2', '--ntasks-per-node=2', '--cpus-per-task=5']),
        (
            dict(GPUS='4', GPUS_PER_NODE='0', TASKS_PER_NODE='2'),
            ['--ntasks=4', '--ntasks-per-node=2', '--cpus-per-task=5'],
        ),
    ],
)
def test_knobs_set_the_sizes(bench, knobs, sizes):
    for script in ('slurm_train.sh', 'slurm_test.sh'):
        bench.run(script, 'p', 'j', 'c.py', 'w', **knobs)
        assert bench.srun_options() == ['-p', 'p', '--job-name=j', *sizes, '--kill-on-bad-exit=1']


def test_srun_args_come_last_and_master_port_is_from_the_job_id_unless_it_is_set(bench):
    bench.run('slurm_train.sh', *ARGS, SRUN_ARGS='--exclusive  --constraint=a100')
    assert bench.srun_options()[-3:] == ['--kill-on-bad-exit=1', '--exclusive', '--constraint=a100']
    assert 'MASTER_PORT' not in bench.env('srun')
    assert bench.env('python')['MASTER_PORT'] == str(20000 + 123456 % 20000) == '23456'
    bench.run('slurm_test.sh', *ARGS, MASTER_PORT='4711')
    assert bench.env('python')['MASTER_PORT'] == '4711'


def test_exit_status_of_the_task_is_that_of_the_script(bench):
    write_executable(bench.bin / 'python', '#!/bin/sh\nexit 7\n')
    bench.run('slurm_train.sh', *ARGS, code=7)
    bench.run('dist_train.sh', 'c.py', '1', code=7)


# slurm_*.sh inside an allocation


@pytest.mark.parametrize(
    ('knobs', 'sizes'),
    [
        (dict(SLURM_CPUS_PER_TASK='4', SLURM_NTASKS='3'), ['--cpus-per-task=4']),
        (dict(GPUS_PER_NODE='0'), []),
        (dict(GPUS='2', GPUS_PER_NODE='0', CPUS_PER_TASK='1'), ['--ntasks=2', '--cpus-per-task=1']),
        (dict(GPUS='4', GPUS_PER_NODE='8', TASKS_PER_NODE='4'), ['--gres=gpu:4', '--ntasks=4', '--ntasks-per-node=4']),
    ],
)
def test_inside_an_allocation_its_own_sizes_hold(bench, knobs, sizes):
    bench.run('slurm_train.sh', *ARGS, SLURM_JOB_ID='40007', **knobs)
    assert bench.srun_options() == ['--job-name=a job', *sizes, '--kill-on-bad-exit=1']
    assert bench.env('python')['MASTER_PORT'] == '20007'


def test_allocation_without_a_gpu_is_remarked_on_unless_it_is_meant(bench):
    assert 'job 7 seems to hold no GPU' in bench.run('slurm_train.sh', *ARGS, SLURM_JOB_ID='7').stderr
    for knob in (dict(GPUS_PER_NODE='0'), dict(SLURM_GPUS_ON_NODE='2'), dict(CUDA_VISIBLE_DEVICES='0,1')):
        assert bench.run('slurm_train.sh', *ARGS, SLURM_JOB_ID='7', **knob).stderr == ''


def test_requeued_job_resumes(bench):
    batch = dict(SLURM_JOB_ID='7', GPUS_PER_NODE='0')
    for restarts, tail in (
        ({}, []),
        (dict(SLURM_RESTART_COUNT='0'), []),
        (dict(SLURM_RESTART_COUNT='2'), ['--resume']),
    ):
        bench.run('slurm_train.sh', *ARGS, '--amp', **restarts, **batch)
        assert bench.argv('python')[-1 - len(tail) :] == ['--amp', *tail]


def test_requeued_job_keeps_the_checkpoint_it_was_given_until_it_has_saved_its_own(bench):
    batch = dict(SLURM_JOB_ID='7', GPUS_PER_NODE='0', SLURM_RESTART_COUNT='1')
    bench.run('slurm_train.sh', *ARGS, '--resume', 'old.pth', **batch)
    assert bench.argv('python')[-2:] == ['--resume', 'old.pth']
    saved = bench.root / ARGS[3] / 'last_checkpoint'
    saved.parent.mkdir(parents=True)
    saved.touch()
    bench.run('slurm_train.sh', *ARGS, '--resume', 'old.pth', **batch)
    assert bench.argv('python')[-3:] == ['--resume', 'old.pth', '--resume']


@pytest.fixture
def spooled(bench):
    """What sbatch leaves of each script: a copy of another name, in a folder without the rest."""
    scripts = {}
    for name in ('slurm_train.sh', 'slurm_test.sh'):
        scripts[name] = bench.root / 'spool' / 'job00007' / name[:-3] / 'slurm_script'
        scripts[name].parent.mkdir(parents=True)
        shutil.copy(bench.repo / 'tools' / name, scripts[name])
    return scripts


def test_spooled_script_finds_its_repository(bench, spooled):
    """In the record of the job, else in the folder that it was submitted from."""
    for name, tool in (('slurm_train.sh', 'train.py'), ('slurm_test.sh', 'test.py')):
        for tail in ('', ' gpu job c.py w'):  # Slurm releases differ in whether they show the arguments
            bench.run(
                spooled[name], *ARGS, SLURM_JOB_ID='7', FAKE_COMMAND=bench.tool(name) + tail, SLURM_SUBMIT_DIR='/'
            )
            assert bench.argv('scontrol') == ['show', 'job', '7']
            assert bench.argv('python')[1] == bench.tool(tool)
            assert bench.env('python')['PYTHONPATH'] == str(bench.repo)
    batch = dict(SLURM_JOB_ID='7', SLURM_SUBMIT_DIR=str(bench.repo))
    for broken in (False, True):
        if broken:
            write_executable(bench.bin / 'scontrol', '#!/bin/sh\nexit 1\n')
        (bench.record / 'python.argv').unlink()
        bench.run(spooled['slurm_train.sh'], *ARGS, FAKE_COMMAND='(null)', **batch)
        assert bench.argv('python')[1] == bench.tool('train.py')


def test_spooled_script_says_so_when_it_finds_no_repository(bench, spooled):
    batch = dict(SLURM_JOB_ID='7', SLURM_SUBMIT_DIR=str(bench.root), FAKE_COMMAND='/gone/tools/slurm_train.sh')
    done = bench.run(spooled['slurm_train.sh'], *ARGS, code=1, **batch)
    assert 'submit the job from the root' in done.stderr
    assert not (bench.record / 'srun.argv').exists()


# Makefile and requirements.txt


@pytest.fixture
def makefile(tmp_path):
    """A folder with what `make install` reads, and a Python that records what it is asked to install."""
    root = tmp_path / 'a clone'
    root.mkdir()
    for name in ('Makefile', 'pyproject.toml', *REQUIREMENTS, 'requirements-common.txt'):
        shutil.copy(REPO / name, root / name)
    write_executable(tmp_path / 'python', VENV_PYTHON)
    (tmp_path / 'failures').write_text('0')

    def make(*args: str, failures: int = 0, code: int = 0) -> tuple[list[str], str]:
        (tmp_path / 'failures').write_text(str(failures))
        (tmp_path / 'calls').write_text('')
        env = clean_environment(RECORD=str(tmp_path), PYTHON=str(tmp_path / 'python'), MAX_JOBS='3', CXX='true')
        done = subprocess.run(['make', *args], cwd=root, env=env, capture_output=True, text=True)
        assert (done.returncode != 0) == (code != 0), done.stdout + done.stderr
        return (tmp_path / 'calls').read_text().splitlines(), done.stdout + done.stderr

    make.root = root
    return make


PIP = '-m pip install'
REQUIREMENTS = ('requirements.txt', 'requirements-onedl.txt')
OPENCV = re.search(r'^opencv-python==(\S+)', (REPO / 'requirements-common.txt').read_text(), re.M)[1]
REQUIRE = [
    f'{PIP} -r requirements.txt',
    '-m pip uninstall --yes opencv-python',
    f'{PIP} --no-deps --force-reinstall opencv-python-headless=={OPENCV}',
]
MMCV_ENV = '[CFLAGS=-O2 -g0 -DNDEBUG OPS=1 JOBS=3]'
MMCV = f'{PIP} --no-deps --no-build-isolation mmcv==2.1.0 {MMCV_ENV}'
REBUILD = (
    f'{PIP} --no-deps --no-build-isolation --no-cache-dir --no-binary mmcv --force-reinstall mmcv==2.1.0 {MMCV_ENV}'
)
EDITABLE = f'{PIP} --no-deps --no-build-isolation -e .'


def test_make_passes_arguments_on(makefile):
    makefile('install')
    assert makefile('test', 'PYTEST_ARGS=-k taps')[0] == ['-m pytest -n 2 --dist loadfile -k taps']
    assert makefile('test', 'TEST_JOBS=8')[0] == ['-m pytest -n 8 --dist loadfile']
    assert makefile('demo', 'DEMO_ARGS=--fast')[0] == ['tools/demo.py --fast']
    assert makefile('lint')[0] == ['-m ruff check .', '-m ruff format --check .']


def test_make_install_announces_the_compilation_and_repeats_what_changed_alone(makefile):
    calls, printed = makefile('install', failures=1)
    assert calls == [*REQUIRE, 'CHECK', MMCV, EDITABLE, 'CHECK']
    assert printed.index('takes 10 to 20 minutes') < printed.index(EDITABLE)
    assert makefile('install')[0] == []
    (makefile.root / 'requirements.txt').touch()
    assert makefile('install')[0] == []
    for name, repeated in (('pyproject.toml', []), ('requirements.txt', REQUIRE)):
        with (makefile.root / name).open('a') as file:
            file.write('# changed\n')
        assert makefile('install')[0] == [*repeated, 'CHECK', EDITABLE, 'CHECK']


def test_make_install_rebuilds_a_hollow_mmcv_once(makefile):
    calls, printed = makefile('install', failures=2)
    assert calls == [*REQUIRE, 'CHECK', MMCV, EDITABLE, 'CHECK', REBUILD, 'CHECK']
    assert 'no working ops' in printed


def test_make_install_gives_up_with_a_sentence_and_is_not_taken_for_done(makefile):
    calls, printed = makefile('install', failures=3, code=2)
    assert calls[-2:] == [REBUILD, 'CHECK']
    assert 'mmcv 2.1.0 could not be installed with working ops' in printed
    assert makefile('install', failures=1)[0] == ['CHECK', MMCV, EDITABLE, 'CHECK']


def test_make_clean_demo_removes_only_what_the_demo_wrote(makefile):
    for folder in ('work_dirs/demo/a', 'work_dirs/mine', 'data'):
        (makefile.root / folder).mkdir(parents=True)
    makefile('clean-demo')
    assert sorted(p.name for p in (makefile.root / 'work_dirs').iterdir()) == ['mine']
    assert (makefile.root / 'data').is_dir()


def test_make_without_a_goal_lists_the_goals(makefile):
    calls, printed = makefile()
    assert calls == []
    for goal in ('install', 'demo', 'test', 'lint', 'clean-demo'):
        assert f'make {goal}' in printed


@pytest.mark.parametrize('name', REQUIREMENTS)
def test_requirements_are_pinned_and_leave_mmcv_out(name):
    text = (
        (REPO / name).read_text().replace('-r requirements-common.txt', (REPO / 'requirements-common.txt').read_text())
    )
    lines = [line.partition('#')[0].strip() for line in text.splitlines()]
    pins = dict(re.fullmatch(r'([A-Za-z0-9-]+)==([0-9][\w.]*)', line).groups() for line in lines if line)
    assert not {'mmcv', 'mmcv-full', 'mmcv-lite', 'onedl-mmcv', 'opencv-python-headless'} & pins.keys()
    assert pins['torch'] == '2.10.0'
    assert int(pins['setuptools'].split('.')[0]) < 81
    # The two families own the same import names: both in one file would overwrite one another.
    assert len({package.startswith('onedl-') for package in pins if 'mm' in package}) == 1


def test_the_forks_get_an_environment_and_an_mmcv_of_their_own(makefile):
    calls, _ = makefile('test-onedl', failures=1)
    assert MMCV.replace('mmcv==2.1.0', 'onedl-mmcv==2.3.6') in calls
    assert f'{PIP} -r requirements-onedl.txt' in calls
    assert (makefile.root / '.venv-onedl').is_dir() and not (makefile.root / '.venv').exists()
    assert 'expected' in makefile('test', 'FAMILY=other', code=2)[1]
