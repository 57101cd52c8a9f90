"""slurm_train.sh and slurm_test.sh on a real Slurm: one node on loopback, started here and stopped again."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from run_helpers import FULL, HOOK, HOSTS, ROOT, classifier, config, distiller, scenes

from lckd_mm.hosts import build_model
from lckd_mm.storage.checkpoint import read_checkpoint

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]
PROGRAMS = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'srun', 'scontrol', 'squeue', 'scancel')
# A requeued job waits until its old credential has expired: cred_expire, two minutes where it is not set.
CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=4
PartitionName=batch Nodes={host} Default=YES PriorityTier=1
PartitionName=urgent Nodes={host} PriorityTier=9
"""


class Cluster:
    """munged, slurmctld and slurmd, with files, sockets and ports of their own."""

    def __init__(self, root: Path):
        self.root = root
        self.daemons: dict[str, subprocess.Popen] = {}
        # Nothing of a job that these tests may run in, or of another Slurm on this machine.
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(('SLURM_', 'SBATCH_', 'SRUN_', 'MASTER_'))}
        self.env |= dict(SLURM_CONF=str(root / 'slurm.conf'), OMP_NUM_THREADS='1', PYTHON=sys.executable)
        self.env |= dict(GPUS_PER_NODE='0', CUDA_VISIBLE_DEVICES='')

    def start(self) -> None:
        for folder in ('state', 'spool'):
            (self.root / folder).mkdir()
        key = self.root / 'munge.key'
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        with socket.socket() as one, socket.socket() as two:
            for sock in (one, two):
                sock.bind(('127.0.0.1', 0))
            ports = [sock.getsockname()[1] for sock in (one, two)]
        host = socket.gethostname().partition('.')[0]
        (self.root / 'slurm.conf').write_text(CONF.format(root=self.root, host=host, ports=ports))
        files = {'key': 'munge.key', 'socket': 'munge.socket', 'pid': 'munged.pid', 'seed': 'munge.seed'}
        options = [f'--{k}{"" if k == "socket" else "-file"}={self.root / v}' for k, v in files.items()]
        self._daemon('munged', '--foreground', '--force', f'--log-file={self.root / "munge.log"}', *options)
        self.wait('munged', lambda: (self.root / 'munge.socket').exists(), 30)
        self._daemon('slurmctld', '-D')
        self._daemon('slurmd', '-D')
        self.wait('slurmctld and slurmd', lambda: 'idle' in self.call('sinfo', '-h', '-o', '%T', check=False), 30)

    def _daemon(self, name: str, *options: str) -> None:
        with open(self.root / f'{name}.log', 'w') as log:
            self.daemons[name] = subprocess.Popen([name, *options], stdout=log, stderr=log, env=self.env)

    def wait(self, what: str, ready, seconds: float = 250) -> None:
        end = time.monotonic() + seconds
        while not ready():
            for name, process in self.daemons.items():
                if process.poll() is not None:
                    log = (self.root / f'{name}.log').read_text().strip().splitlines() or ['']
                    pytest.skip(f'{name} does not run here (exit status {process.returncode}): {log[-1]}')
            if time.monotonic() > end:
                logs = {p.name: p.read_text()[-1500:] for p in self.root.glob('*.log')}
                raise TimeoutError(f'{what}: not in {seconds} s; ' + '\n'.join(f'{k}: {v}' for k, v in logs.items()))
            time.sleep(0.1)

    def call(self, *command, check: bool = True, **env: str) -> str:
        done = subprocess.run(
            [str(c) for c in command], cwd=ROOT, env=self.env | env, capture_output=True, text=True, timeout=200
        )
        assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    def job(self, job: str) -> dict[str, str]:
        return dict(re.findall(r'(\S+?)=(\S*)', self.call('scontrol', 'show', 'job', job)))

    def tasks(self, job: str) -> dict[str, int]:
        """The process ids of the job's trainings, by rank."""
        found = {}
        for folder in Path('/proc').glob('[0-9]*'):
            try:
                env = dict(e.split('=', 1) for e in (folder / 'environ').read_text().split('\0') if '=' in e)
                command = (folder / 'cmdline').read_text()
            except (OSError, UnicodeDecodeError):
                continue  # it has ended meanwhile
            mine = env.get('SLURM_CONF') == self.env['SLURM_CONF'] and env.get('SLURM_JOB_ID') == job
            if mine and 'SLURM_PROCID' in env and f'{ROOT}/tools/train.py' in command.split('\0'):
                found[env['SLURM_PROCID']] = int(folder.name)
        return found

    def stop(self) -> None:
        if 'slurmctld' in self.daemons:
            self.call('scancel', '--user=root', check=False)
        for name in ('slurmd', 'slurmctld', 'munged'):
            if name in self.daemons:
                self.daemons[name].terminate()
        for process in self.daemons.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        # What a job left behind; only what this cluster started knows its slurm.conf.
        for folder in Path('/proc').glob('[0-9]*'):
            try:
                ours = f'SLURM_CONF={self.env["SLURM_CONF"]}' in (folder / 'environ').read_bytes().decode().split('\0')
                if ours and int(folder.name) != os.getpid():
                    os.kill(int(folder.name), signal.SIGKILL)
            except (OSError, UnicodeDecodeError):
                continue


@pytest.fixture(scope='module')
def cluster():
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f'no {", ".join(missing)}: apt-get install slurm-wlm munge')
    if os.geteuid() != 0:
        pytest.skip('the daemons of Slurm want root')
    # Not under pytest's own folder: a socket's path may have 107 characters.
    root = Path(tempfile.mkdtemp(prefix='slurm-'))
    cluster = Cluster(root)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(root)


@pytest.fixture
def distillation(scenes, tmp_path):
    """The path of a small distillation config of 300 iterations, with a checkpoint every 20."""
    teacher = tmp_path / 'teacher.pth'
    torch.manual_seed(7)
    torch.save(dict(state_dict=build_model(classifier(8), 'mmpretrain').state_dict()), teacher)
    model = distiller('mmpretrain', classifier(4), classifier(8), teacher)
    cfg = config('mmpretrain', scenes, tmp_path / 'unused', model, iters=300)
    cfg.log_level = 'INFO'
    cfg.default_hooks.distillation = HOOK
    cfg.default_hooks.checkpoint.update(interval=20, max_keep_ckpts=2)
    cfg.default_hooks.logger.interval = 50
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=300)
    cfg.test_dataloader = dict(
        batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=HOSTS['mmpretrain'][1](scenes, 'train'),
    )  # fmt: skip
    cfg.test_cfg, cfg.test_evaluator = dict(type='TestLoop'), dict(type='Accuracy')
    cfg.dump(tmp_path / 'config.py')
    return tmp_path / 'config.py'


def last(work_dir: Path) -> int:
    """The iteration of the last whole checkpoint, 0 without one."""
    try:
        return int(re.search(r'iter_(\d+)\.pth$', (work_dir / 'last_checkpoint').read_text())[1])
    except (OSError, TypeError):
        return 0


@pytest.mark.full
def test_a_killed_job_is_requeued_and_goes_on_by_itself(cluster, distillation, tmp_path):
    work_dir, log = tmp_path / 'my run', tmp_path / 'job.log'
    sizes = ['--requeue', '-p', 'batch', '-n', '2', '-c', '1', f'--output={log}']
    script = ROOT / 'tools' / 'slurm_train.sh'
    job = cluster.call('sbatch', '--parsable', *sizes, script, 'batch', 'train', distillation, work_dir).strip()

    # One rank is killed: the other one does not wait for it for ever, and the job fails.
    cluster.wait('the first checkpoint', lambda: last(work_dir) > 0)
    tasks = cluster.tasks(job)
    assert set(tasks) == {'0', '1'}
    os.kill(tasks['1'], signal.SIGKILL)
    cluster.wait('the end of the killed job', lambda: cluster.job(job)['JobState'] == 'FAILED')
    first = last(work_dir)
    assert 0 < first < 300
    assert not cluster.tasks(job)
    cluster.call('scontrol', 'requeue', job)
    runs = [first]

    if FULL:
        # A job of more priority takes its processors: Slurm itself ends it, and starts it again afterwards.
        cluster.wait('a checkpoint of the second run', lambda: last(work_dir) > first)
        cluster.call('srun', '-p', 'urgent', '-n', '4', 'true')
        assert cluster.job(job)['JobState'] == 'PENDING'
        runs.append(last(work_dir))

    cluster.wait('the end of training', lambda: cluster.job(job)['JobState'] == 'COMPLETED')
    assert int(cluster.job(job)['Restarts']) == len(runs)
    text = log.read_text()
    resumed = [int(n) for n in re.findall(r'resumed epoch: \d+, iter: (\d+)', text)]
    assert resumed == runs, text[-3000:]
    assert last(work_dir) == 300
    saved = read_checkpoint(str(work_dir / 'iter_300.pth'), 'test')
    assert saved['meta']['iter'] == 300 and saved['lckd_mm']['terms']

    # Its checkpoint is tested by two tasks, in an allocation that the script asks for itself.
    out = tmp_path / 'metrics.json'
    knobs = dict(GPUS='2', CPUS_PER_TASK='1')
    test = ROOT / 'tools' / 'slurm_test.sh'
    cluster.call(test, 'batch', 'test', distillation, work_dir / 'iter_300.pth', '--out', out, **knobs)
    assert 0 <= json.loads(out.read_text())['accuracy/top1'] <= 100


@pytest.mark.full
def test_a_study_runs_as_arrays_after_one_another(cluster, tmp_path):
    study, work_dir = tmp_path / 'small study.py', tmp_path / 'runs'
    digits = "config='configs/digits/{}_1xb30_digits300.py'"
    study.write_text(f"""
title, metric, work_dir = 'A small one', dict(key='accuracy/top1', title='accuracy, %'), 'unused'
axes = dict(weight=dict(low={{'model.terms.loss_kd.weight': 0.5}}, high={{}}))
runs = dict(
    teacher=dict(config='configs/digits/wrn16-4_1xb30_digits.py', title='teacher'),
    kd=dict({digits.format('kd_wrn16-4_wrn10-1')}, title='KD', axes=['weight'],
            needs={{'model.teacher.checkpoint': 'teacher'}}),
)
""")
    quick = ('train_cfg.max_epochs=1', 'train_cfg.val_interval=1', 'train_dataloader.dataset.subset=30',
             'param_scheduler.0.T_max=1', 'default_hooks.checkpoint.interval=1')  # fmt: skip
    command = [sys.executable, '-W', 'ignore', ROOT / 'tools' / 'bench' / 'study.py', study, '--seeds', '2']
    command += ['--work-dir', work_dir, '--launcher', 'slurm', '--partition', 'batch', '--sbatch-args=-n 1 -c 1']
    out = cluster.call(*command, '--jobs', '2', '--cfg-options', *quick)
    assert re.findall(r'layer (\d): (\d) runs', out) == [('0', '2'), ('1', '4')], out
    job = re.search(r'report: job (\d+)', out)[1]
    # Handed in twice by mistake, the runs are not trained twice into one folder.
    twice = subprocess.run([str(c) for c in command], cwd=ROOT, env=cluster.env, capture_output=True, text=True)
    assert twice.returncode == 1 and f'{job} of a study in {str(work_dir)!r} are still queued' in twice.stderr
    cluster.wait('the report', lambda: cluster.job(job).get('JobState') == 'COMPLETED')
    record = json.loads((work_dir / 'small study.json').read_text())
    assert set(record) == {'teacher', 'kd-low', 'kd-high'}
    assert all(list(cell['runs']) == ['0', '1'] for cell in record.values())
    # Nothing is left to hand in.
    again = cluster.call(*command, '--cfg-options', *quick)
    assert not re.search(r'layer \d', again) and again.startswith('| 2 seeds |')
