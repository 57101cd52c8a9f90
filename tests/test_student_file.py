"""Every distillation ends with student.pth, which the host's own tools load as it is."""

import os
import subprocess
import sys
from pathlib import Path

import mmseg
import pytest
import torch
from mmengine.config import Config
from run_helpers import (
    HOOK,
    HOSTS,
    config,
    count,
    distillation,
    evaluation,
    run,
    scenes,
    teacher_file,
)

KD = dict(loss=dict(type='lckd_mm.KDLoss'), on='logits')


@pytest.mark.parametrize('host', count(list(HOSTS), ['mmseg']))
def test_the_hosts_own_tool_tests_the_student(host, scenes, tmp_path, teacher_file):
    tested = evaluation(host, scenes)
    validated = {key.replace('test', 'val'): value for key, value in tested.items()} | dict(
        val_cfg=dict(type='ValLoop')
    )
    model = distillation(host, teacher_file, loss_kd=KD)
    cfg = config(host, scenes, tmp_path / 'run', model, iters=4, **tested, **validated)
    cfg.train_cfg.val_interval = 2
    cfg.default_hooks.distillation = HOOK
    best = dict(mmseg='mIoU', mmdet='pascal_voc/mAP', mmpretrain='accuracy/top1')[host]
    cfg.default_hooks.checkpoint.update(interval=2, save_best=best, rule='greater')
    run(cfg)
    path = tmp_path / 'run' / 'student.pth'
    content = torch.load(path, weights_only=True)
    (chosen,) = (tmp_path / 'run').glob('best_*.pth')
    state = torch.load(chosen, weights_only=False)['state_dict']
    assert content['state_dict'].keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in content['state_dict'].items())
    assert path.stat().st_size < (tmp_path / 'run' / 'iter_4.pth').stat().st_size
    # Its config is the student's own, and lets the host build the net from the file alone.
    plain = Config.fromstring(content['meta']['cfg'], '.py')
    assert plain.model.type == HOSTS[host][0](4)['type'] and 'lckd_mm' not in content['meta']['cfg']
    plain.dump(tmp_path / 'plain.py')
    tool = Path(mmseg.__file__).parents[1] / host / '.mim' / 'tools' / 'test.py'
    env = {key: value for key, value in os.environ.items() if not key.startswith(('PYTHON', 'TORCH_FORCE'))}
    done = subprocess.run(
        [sys.executable, tool, tmp_path / 'plain.py', path, '--work-dir', tmp_path / 'test',
         '--cfg-options', 'log_level=INFO'],
        capture_output=True, text=True, env=env, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'do not match' not in done.stdout + done.stderr and 'missing keys' not in done.stdout
    assert best.rpartition('/')[2] in done.stdout


def test_the_last_checkpoint_where_none_is_the_best(scenes, tmp_path, teacher_file):
    cfg = config('mmseg', scenes, tmp_path / 'run', distillation('mmseg', teacher_file, loss_kd=KD), iters=2)
    cfg.default_hooks.distillation = HOOK
    cfg.default_hooks.checkpoint.interval = 2
    run(cfg)
    state = torch.load(tmp_path / 'run' / 'iter_2.pth', weights_only=False)['state_dict']
    content = torch.load(tmp_path / 'run' / 'student.pth', weights_only=True)['state_dict']
    assert all(torch.equal(value, state[key]) for key, value in content.items())
    # It is not taken for a checkpoint to resume from.
    from lckd_mm.storage.files import newest_good

    assert newest_good(tmp_path / 'run')[0].endswith('iter_2.pth')
