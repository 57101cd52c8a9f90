"""While every weight is 0 the teacher does not run, and nothing else differs."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from run_helpers import HOOK, built, config, distiller, run, scalars, scenes, segmentor, teacher_file
from torch import nn

from lckd_mm.distillation.shares import START
from lckd_mm.hooks import GradientRescaleHook, GradientShareHook, LipschitzMonitorHook

pytestmark = pytest.mark.filterwarnings('ignore')


@MODELS.register_module()
class FailsInTraining(nn.Module):
    def forward(self, student, teacher):
        if self.training:
            raise ValueError('it does not fit')
        return (student - teacher).square().mean()


class Calls(Hook):
    """How often the teacher's backbone has run, and the connectors' state, after each iteration."""

    priority = 'LOWEST'

    def before_train(self, runner):
        self.calls, self.runs, self.states = 0, [], []
        runner.model.teacher.model.backbone.register_forward_pre_hook(self.count)

    def count(self, *_):
        self.calls += 1

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.runs.append(self.calls)
        state = runner.model.distillation_state()
        self.states.append({key: value.clone() for key, value in state.items() if 'connectors' in key})


def late(scenes, folder, teacher_file, *hooks, loss=None):
    """Six iterations; the only term with a weight sets in at the fourth."""
    model = distiller('mmseg', segmentor(4), *teacher_file('mmseg'), kd=0)
    if loss is not None:
        model['terms']['loss_kd'] = dict(loss=loss, on='logits')
    schedules = [
        dict(type='lckd_mm.LossWeightHook', term=term, schedule='linear', begin=2, end=4) for term in model['terms']
    ]
    cfg = config('mmseg', scenes, folder, model, iters=6, custom_hooks=[*schedules, *hooks])
    cfg.default_hooks.distillation = HOOK
    cfg.default_hooks.non_finite = dict(type='lckd_mm.NonFiniteHook')
    cfg.default_hooks.resume = dict(type='lckd_mm.ResumeHook')
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.checkpoint.interval = 2
    cfg.log_level = 'INFO'
    return cfg


def test_a_term_that_sets_in_later_costs_no_teacher_before(scenes, tmp_path, teacher_file, forget_runs):
    calls = Calls()
    whole = run(late(scenes, tmp_path / 'a', teacher_file), calls)
    # The first is the rehearsal's, in which all terms are computed.
    assert calls.runs == [1, 1, 1, 2, 3, 4]
    assert all(torch.equal(v, calls.states[0][k]) for k, v in calls.states[2].items() if 'running' in k)
    losses = [entry['loss_lipschitz'] for entry in scalars(tmp_path / 'a')]
    assert losses[:3] == [0, 0, 0] and losses[3] > 0
    (log,) = (tmp_path / 'a').glob('*/*.log')
    text = log.read_text()
    assert text.count('every weight is 0, so the teacher does not run') == text.count('the teacher runs, and') == 1

    forget_runs()
    cfg = late(scenes, tmp_path / 'b', teacher_file)
    cfg.resume, cfg.load_from = True, str(tmp_path / 'a' / 'iter_2.pth')
    resumed = run(cfg)
    for state in ('state_dict', 'distillation_state'):
        one, two = (getattr(of.model, state)() for of in (whole, resumed))
        assert all(torch.equal(v, two[k]) for k, v in one.items())


@pytest.mark.full
def test_an_observer_sees_the_teacher_and_changes_nothing(scenes, tmp_path, teacher_file, forget_runs):
    whole = run(late(scenes, tmp_path / 'a', teacher_file))
    forget_runs()
    monitor, calls = dict(type='lckd_mm.LipschitzMonitorHook', interval=2), Calls()
    watched = run(late(scenes, tmp_path / 'b', teacher_file, monitor), calls)
    assert calls.runs == [2, 3, 3, 4, 5, 6]
    first = scalars(tmp_path / 'b')[0]
    assert first['sigma_gap'] > 0 and not any(key.startswith('sigma_connected') for key in first)
    for state in ('state_dict', 'distillation_state'):
        one, two = (getattr(of.model, state)() for of in (whole, watched))
        assert all(torch.equal(v, two[k]) for k, v in one.items())


def test_a_term_that_sets_in_later_is_rehearsed_at_once(scenes, tmp_path, teacher_file):
    calls = Calls()
    with pytest.raises(ValueError, match=r"'loss_kd': FailsInTraining .* it does not fit"):
        run(late(scenes, tmp_path, teacher_file, loss=dict(type='FailsInTraining')), calls)
    assert calls.runs == []


def test_a_term_named_as_a_loss_of_the_student_is_refused_while_idle_too(built):
    terms = dict(loss_cls=dict(loss=dict(type='lckd_mm.KDLoss', activation='sigmoid'), on='logits', weight=0))
    model, images, samples = built('mmdet', terms=terms)
    with pytest.raises(KeyError, match="term 'loss_cls': the student has a loss of this name"):
        model.loss(images, samples)


def test_what_was_measured_before_is_not_logged_on(built):
    model, images, samples = built('mmpretrain')
    hub = MessageHub.get_instance('idle')
    runner = SimpleNamespace(model=model, iter=0, message_hub=hub)
    hooks = GradientShareHook('stage2'), GradientRescaleHook(), LipschitzMonitorHook()
    for hook in hooks:
        hook.before_train(runner)
    logged = []
    for scale in (1.0, 0.0):
        for term in model.terms.values():
            term.scale = scale
        for hook in hooks:
            hook.before_train_iter(runner, 0)
        model.loss(images, samples)
        for hook in hooks:
            hook.after_train_iter(runner, 0)
        logged.append({key.removeprefix('train/'): value.current() for key, value in hub.log_scalars.items()})
    gone = logged[0].keys() - logged[1].keys()
    assert {key.partition('/')[0].rpartition('_')[0] for key in gone} == {'rescale_kd', 'sigma'}
    assert 'sigma_gap' in logged[1] and any(key.startswith('sigma_connected') for key in gone)
    assert logged[0]['gradient_kd'] > 0 == logged[1]['gradient_kd'] and logged[1]['gradient_task'] == 1


@pytest.mark.parametrize(('weight', 'before', 'after'), [('start:0.5', False, True), ('share:0.5', False, False)])
def test_a_share_is_measured_whatever_the_schedule(built, weight, before, after):
    terms = dict(loss_kd=dict(loss=dict(type='lckd_mm.KDLoss'), on='logits', weight=weight))
    model, images, samples = built('mmpretrain', terms=terms)
    term = model.terms['loss_kd']
    term.scale = 0.0
    assert model.terms.idle == before
    assert model.loss(images, samples)['loss_kd'] == 0 and term.running.seen == 1
    term.running.seen.fill_(START)
    assert model.terms.idle == after
    term.scale = 1.0
    assert not model.terms.idle


def test_ddp_gets_a_gradient_of_zero_for_every_connector(built, tmp_path):
    model, images, samples = built('mmpretrain')
    for term in model.terms.values():
        term.scale = 0.0
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/meet', rank=0, world_size=1)
    try:
        wrapped = MMDistributedDataParallel(model)
        wrapper = build_optim_wrapper(wrapped, dict(optimizer=dict(type='SGD', lr=0.1)))
        # DDP complains about an unused parameter at the next forward pass.
        for _ in range(2):
            wrapper.zero_grad()
            total, _ = model.parse_losses(wrapped(images, samples, mode='loss'))
            total.backward()
    finally:
        torch.distributed.destroy_process_group()
    gradients = [p.grad for p in model.terms.parameters()]
    assert gradients and all(grad is not None and not grad.any() for grad in gradients)
