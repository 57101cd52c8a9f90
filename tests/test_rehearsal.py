"""The first batch is run once before training, and the training is as if it had not been."""

import copy
import random
import re

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from run_helpers import HOOK, HOSTS, config, distiller, run, scalars, scenes, segmentor, teacher_file
from small_nets import of_one_size
from torch import nn

from lckd_mm.hooks.rehearsal import RehearsalHook
from lckd_mm.hosts import build_model
from lckd_mm.registry import MODELS

ONLINE = dict(type='lckd_mm.OnlineHook')

pytestmark = pytest.mark.filterwarnings('ignore')


@MODELS.register_module()
class Restless(nn.Module):
    """A loss with every kind of state: a buffer, a counter, a list, random numbers of all generators."""

    def __init__(self):
        super().__init__()
        self.register_buffer('seen', torch.zeros(()))
        self.count, self.history = 0, []

    def forward(self, student, teacher):
        self.seen += 1
        self.count += 1
        self.history.append(float(student.mean()))
        MessageHub.get_current_instance().update_scalar('train/restless', self.count)
        factor = 1 + self.count + len(self.history) + float(self.seen) + random.random() + np.random.rand()
        return factor * torch.nn.functional.dropout(student - teacher).square().mean()


class Witness(Hook):
    """Draws numbers after each iteration."""

    priority = 'LOWEST'

    def __init__(self):
        self.numbers = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.numbers.append((random.random(), float(np.random.rand()), float(torch.rand(()))))


def trained(host, scenes, folder, model, kind):
    """Two iterations; the model, the numbers that are drawn next, the log's lines and the message hub's scalars."""
    cfg = config(host, scenes, folder, model, iters=2)
    cfg.log_level = 'INFO'
    cfg.default_hooks.update(distillation=dict(kind), logger=dict(type='LoggerHook', interval=1))
    if kind == HOOK:
        cfg.default_hooks.non_finite = dict(type='lckd_mm.NonFiniteHook', action='skip')
        cfg.custom_hooks = [dict(type='lckd_mm.LipschitzMonitorHook', interval=1, on=['stage1', 'stage2'])]
    if host == 'mmpretrain':
        cfg.optim_wrapper.type = 'lckd_mm.AutocastOptimWrapper'
    witness = Witness()
    runner = run(cfg, witness)
    lines = [{k: v for k, v in line.items() if 'time' not in k} for line in scalars(folder)]
    hub = {k: buffer.data[0].tolist() for k, buffer in runner.message_hub.log_scalars.items() if 'time' not in k}
    return runner.model, witness.numbers, lines, hub


@pytest.mark.parametrize('host', [*HOSTS, 'online'])
def test_training_is_as_if_the_rehearsal_had_not_been(host, scenes, teacher_file, tmp_path, monkeypatch):
    kind, host = (ONLINE, 'mmpretrain') if host == 'online' else (HOOK, host)
    cfg = distiller(host, HOSTS[host][0](4), *teacher_file(host))
    cfg['terms']['loss_restless'] = dict(loss=dict(type='Restless'), on='stage3', connector=dict(type='lckd_mm.ConvBN'))
    if kind == ONLINE:
        nets = [HOSTS[host][0](width) for width in (4, 6)]
        cfg = dict(type='lckd_mm.OnlineDistiller', nets=nets, taps=cfg['taps'], terms=cfg['terms'])
    rehearsals, before = [], RehearsalHook.before_train_iter

    def counted(self, *args, **kwargs):
        rehearsals.append(self.done)
        before(self, *args, **kwargs)

    monkeypatch.setattr(RehearsalHook, 'before_train_iter', counted)
    model, *rest = trained(host, scenes, tmp_path / 'rehearsed', copy.deepcopy(cfg), kind)
    monkeypatch.setattr(RehearsalHook, 'before_train_iter', lambda *_, **__: None)
    plain, *expected = trained(host, scenes, tmp_path / 'plain', copy.deepcopy(cfg), kind)
    assert rehearsals == [False, True]
    assert rest == expected
    (log,) = (file.read_text() for file in (tmp_path / 'rehearsed').glob('*/*.log'))
    check_block(log, 'online' if kind == ONLINE else host)
    states = model.student.state_dict() | stored(model), plain.student.state_dict() | stored(plain)
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    states = [[(m.count, m.history) for m in of.modules() if isinstance(m, Restless)] for of in (model, plain)]
    assert states[0] == states[1] != []


#: Of each host, in the first batch: the size of the images, and both nets' third stage.
MET = {
    'mmseg': ('64 x 64', '16x8x8 | 32x8x8'),
    'mmpretrain': ('48 x 48', '16x3x3 | 32x3x3'),
    'mmdet': ('64 x 64', '16x4x4 | 32x4x4'),
    'online': ('48 x 48', '16x3x3 | 24x3x3'),
}


def check_block(log, host):
    """It says once what is distilled, with the sizes of the batch that training begins with."""
    size, stage3 = MET[host]
    head, end = f'the first batch has 2 images of {size}; shapes are ', f"ConvBN on the student's side: stage3 {stage3}"
    (block,) = re.findall(rf'distillation[;,].*{head}.*\n((?: +.*\n)+)', log)
    lines = [line.strip() for line in block.splitlines()]
    assert [line.partition(':')[0] for line in lines[2:]] == ['taps', 'loss_lipschitz', 'loss_kd', 'loss_restless']
    assert lines[-1] == f'loss_restless: Restless, weight 1, {end}'
    if host != 'online':
        assert re.fullmatch(r"student: \w+, [\d,]+ parameters, 2\d\.\d % of the teacher's", lines[0])
        assert re.fullmatch(rf'teacher: \w+, [\d,]+ parameters, .*teacher-{host}\.pth', lines[1])


def stored(model):
    """What is stored beside the student."""
    state = model.distillation_state()
    if 'nets' not in state:
        return state
    return {f'{k}.{key}': v for k, of in enumerate([*state['nets'], state['terms']]) for key, v in of.items()}


# ---- what only training shows


def mixup(root, folder, teacher_file):
    """Labels are mixed in training alone."""
    cfg = distiller('mmpretrain', HOSTS['mmpretrain'][0](4), *teacher_file('mmpretrain'))
    cfg['student']['train_cfg'] = dict(augments=dict(type='Mixup', alpha=1.0))
    cfg['terms'] = dict(loss_dkd=dict(loss=dict(type='lckd_mm.DKDLoss'), on='logits'))
    return config('mmpretrain', root, folder, cfg)


def another_size(root, folder, _):
    """The teacher takes images of 96 x 96, the dry run gave it one, and the student's have 64 x 64."""
    student, teacher = segmentor(4, classes=11), of_one_size(classes=11)
    term = dict(loss=dict(type='lckd_mm.KDLoss'), on='logits', teacher_connector=dict(type='lckd_mm.MatchSize'))
    cfg = distiller('mmseg', student, teacher, saved(folder, teacher, 'mmseg')) | dict(dry_run_size=96)
    return config('mmseg', root, folder, cfg | dict(taps=dict(logits='decode_head.conv_seg'), terms=dict(loss_kd=term)))


def saved(folder, model, host):
    folder.mkdir(exist_ok=True)
    torch.save(dict(state_dict=build_model(model, host).state_dict()), folder / 'teacher.pth')
    return folder / 'teacher.pth'


@pytest.mark.parametrize(
    ('make', 'sentence'),
    [
        (mixup, r"term 'loss_dkd': DKDLoss does not take these features \(student logits \(2, 10\).*one label per"),
        (another_size, r"teacher: EncoderDecoder fails on the student's images, of 64 x 64 with 3 channels: "),
    ],
)
def test_it_fails_before_the_first_iteration(make, sentence, scenes, tmp_path, teacher_file):
    cfg = make(scenes, tmp_path / 'run', teacher_file)
    cfg.default_hooks.distillation = dict(HOOK)
    steps = Steps()
    with pytest.raises(ValueError, match=sentence):
        run(cfg, steps)
    assert steps.begun == 0


class Steps(Hook):
    """Counts the training steps that begin."""

    def before_train(self, runner):
        self.begun, step = 0, runner.model.train_step

        def counted(*args, **kwargs):
            self.begun += 1
            return step(*args, **kwargs)

        runner.model.train_step = counted
