"""Whole runs through mmengine's Runner: null equivalence, and what every kind of checkpoint holds.

Real hosts on real files: digit scenes for mmseg and mmdet, the digit scans' own classes for mmpretrain.
"""

import os
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.runner.checkpoint import load_state_dict
from run_helpers import HOOK, HOSTS, config, distiller, run, scalars, scenes, segmentor, teacher_file, validation

from lckd_mm.hosts import build_model
from lckd_mm.storage.checkpoint import STATE_KEY


@pytest.mark.parametrize('host', HOSTS)
def test_weight_zero_is_the_plain_config_to_the_bit(host, scenes, tmp_path, teacher_file):
    make = HOSTS[host][0]
    teacher, path = teacher_file(host)
    plain = run(config(host, scenes, tmp_path / 'plain', make(4)))
    cfg = config(host, scenes, tmp_path / 'null', distiller(host, make(4), teacher, path, lipschitz=0.0, kd=0.0))
    cfg.default_hooks.distillation = HOOK
    null = run(cfg)
    expected, got = plain.model.state_dict(), null.model.state_dict()
    assert list(expected) == list(got)
    assert all(torch.equal(expected[k], got[k]) for k in expected)
    # and it did train
    moments = [m['momentum_buffer'] for m in plain.optim_wrapper.optimizer.state.values()]
    assert sum(bool(m.any()) for m in moments) > 20
    # the same curves under the same names, beside the terms' own; a host's bare `loss` becomes loss_task
    for a, b in zip(scalars(tmp_path / 'plain'), scalars(tmp_path / 'null'), strict=True):
        for key in a.keys() - {'time', 'data_time', 'memory', 'iter_time'}:
            assert a[key] == b[key], key
        assert b['loss_kd'] == 0.0 and b['loss_lipschitz'] == 0.0
    # a checkpoint loads the same into the plain model
    load_state_dict(
        build_model(make(4), host), torch.load(tmp_path / 'null' / 'iter_20.pth')['state_dict'], strict=True
    )


def test_with_weights_the_terms_train_the_student(scenes, tmp_path, teacher_file):
    teacher, path = teacher_file('mmseg')
    runs = {}
    for weight in (0.0, 1.0):
        model = distiller('mmseg', segmentor(4), teacher, path, lipschitz=weight, kd=0.0)
        cfg = config('mmseg', scenes, tmp_path / str(weight), model)
        cfg.default_hooks.distillation = HOOK
        runs[weight] = run(cfg)
    a, b = (r.model.student.backbone.layer1[0].conv1.weight for r in runs.values())
    assert not torch.equal(a, b)
    connector = runs[1.0].model.terms['loss_lipschitz'].connectors[0][0].weight
    assert runs[1.0].optim_wrapper.optimizer.state[connector]['momentum_buffer'].abs().sum() > 0
    assert all(p.grad is None for p in runs[1.0].model.teacher.model.parameters())


def seg_distillation(scenes, work_dir, teacher_file, iters=20, **extra):
    teacher, path = teacher_file('mmseg')
    model = distiller('mmseg', segmentor(4), teacher, path)
    cfg = config('mmseg', scenes, work_dir, model, iters, **extra)
    cfg.default_hooks.distillation = HOOK
    return cfg


PLAIN = """
import sys, json, torch
from mmengine.config import Config
from mmengine.registry import init_default_scope, MODELS
import mmseg.models
from mmengine.runner import load_checkpoint
assert not any(name.startswith('lckd_mm') for name in sys.modules)
init_default_scope('mmseg')
cfg = Config.fromfile(sys.argv[1])
for path in sys.argv[2:]:
    model = MODELS.build(cfg.model)
    load_checkpoint(model, path, map_location='cpu', strict=True)
    state = torch.load(path, weights_only=False)['state_dict']
    assert set(state) == set(model.state_dict()), path
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())
assert not any(name.startswith('lckd_mm') for name in sys.modules)
print('loaded', len(sys.argv) - 2)
"""


def load_in_plain_mmseg(tmp_path, paths):
    """In a process that never imports this package. (mmengine's own files need weights_only off on torch >= 2.6.)"""

    Config(dict(model=segmentor(4))).dump(tmp_path / 'plain.py')
    env = dict(os.environ, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD='1')
    out = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', PLAIN, tmp_path / 'plain.py', *paths],
        capture_output=True, text=True, env=env,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr[-2000:]
    assert f'loaded {len(paths)}' in out.stdout


def test_every_kind_of_checkpoint_is_the_student(scenes, tmp_path, teacher_file):
    hooks = [dict(type='EMAHook', momentum=0.1, update_buffers=True)]
    cfg = seg_distillation(scenes, tmp_path / 'run', teacher_file, custom_hooks=hooks, **validation(scenes))
    cfg.train_cfg.val_interval = 10
    cfg.default_hooks.checkpoint.update(save_best='mIoU', rule='greater')
    full = run(cfg)
    (best,) = (tmp_path / 'run').glob('best_mIoU_iter_*.pth')

    # EMA: the file's state_dict is the average, ema_state_dict the raw student under EMA's own prefix
    file = torch.load(tmp_path / 'run' / 'iter_20.pth')
    raw = {k.removeprefix('module.'): v for k, v in file['ema_state_dict'].items() if k != 'steps'}
    assert set(raw) == set(file['state_dict'])
    assert all(torch.equal(v, full.model.state_dict()[k]) for k, v in raw.items())
    assert not torch.equal(raw['decode_head.conv_seg.weight'], file['state_dict']['decode_head.conv_seg.weight'])
    assert not any(k.startswith(('teacher', 'terms', 'student')) for k in file['state_dict'])
    stored = file[STATE_KEY]['terms']
    assert torch.equal(stored['loss_lipschitz.connectors.0.0.weight'],
                       full.model.terms['loss_lipschitz'].connectors[0][0].weight)  # fmt: skip

    # load_from: the student only, its iteration from 0
    fresh = seg_distillation(scenes, tmp_path / 'fresh', teacher_file, iters=10)
    fresh.load_from = str(best)
    run(fresh)
    others = [tmp_path / name for name in ('run/iter_10.pth', 'run/iter_20.pth', 'fresh/iter_10.pth')]
    load_in_plain_mmseg(tmp_path, [best, *others])


def test_resuming_a_plain_run_as_a_distillation_is_refused(scenes, tmp_path, teacher_file):
    run(config('mmseg', scenes, tmp_path / 'plain', segmentor(4), iters=10))
    cfg = seg_distillation(scenes, tmp_path / 'kd', teacher_file)
    cfg.resume, cfg.load_from = True, str(tmp_path / 'plain' / 'iter_10.pth')
    with pytest.raises(ValueError, match=r"'lckd_mm'.*DistillationHook.*load_from"):
        run(cfg)
