"""Gradient accumulation, EMA, activation checkpointing and torch.compile, each with taps and connectors."""

from types import SimpleNamespace

import pytest
import torch
import torch._dynamo
from mmengine.hooks import EMAHook, Hook
from mmengine.optim import OptimWrapper
from poison import States
from run_helpers import (
    HOOK,
    HOSTS,
    built,
    config,
    detector,
    distiller,
    run,
    scenes,
    segmentor,
    teacher_file,
    validation,
)
from torch import nn

from lckd_mm.connectors import Connector
from lckd_mm.hooks import ActivationCheckpointHook
from lckd_mm.hosts import build_model
from lckd_mm.registry import MODELS
from lckd_mm.taps import FeatureTaps

pytestmark = pytest.mark.filterwarnings('ignore')


@MODELS.register_module()
class Linear1x1(Connector, nn.Conv2d):
    """A connector without statistics of the batch."""

    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x, like=None):
        return super().forward(x)


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


# --- gradient accumulation ---


@pytest.mark.parametrize('host', ['mmseg', 'mmpretrain'])
def test_two_accumulated_batches_are_one_of_both(built, host):
    """Of nets without BatchNorm; a detector's own loss is divided by the batch's number of objects."""

    def without_batchnorm(cfg):
        norm = dict(type='GN', num_groups=2)
        cfg['student']['backbone']['norm_cfg'] = norm
        for head in ('decode_head', 'auxiliary_head'):
            if head in cfg['student']:
                cfg['student'][head].update(norm_cfg=norm, dropout_ratio=0)
        cfg['terms']['loss_lipschitz']['connector'] = dict(type='Linear1x1')

    moves = []
    for parts in (1, 2):
        model, images, samples = built(host, prepare=without_batchnorm)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.02), accumulative_counts=parts)
        size = len(images) // parts
        for i in range(parts):
            batch = slice(i * size, (i + 1) * size)
            with wrapper.optim_context(model):
                losses = model(images[batch], samples[batch], mode='loss')
            wrapper.update_params(model.parse_losses(losses)[0])
        moves.append({name: p.detach() - before[name] for name, p in model.named_parameters()})
    for part in ('backbone', 'terms.loss_lipschitz.connectors'):
        one, two = (torch.cat([v.flatten() for k, v in move.items() if k.startswith(part)]) for move in moves)
        assert one.norm() > 0
        assert (one - two).norm() < 2e-3 * one.norm(), part


# --- EMA ---


class AtValidation(Hook):
    def before_val_iter(self, runner, batch_idx, data_batch=None):
        self.weights = {k: v.clone() for k, v in runner.model.state_dict().items()}


def test_ema_averages_validates_and_resumes(scenes, tmp_path, teacher_file):
    teacher, file = teacher_file('mmseg')

    def start(iters, **extra):
        cfg = config('mmseg', scenes, tmp_path, distiller('mmseg', segmentor(4), teacher, file), iters=iters,
                     custom_hooks=[dict(type='EMAHook', momentum=0.25)], **validation(scenes), **extra)  # fmt: skip
        cfg.default_hooks.update(distillation=HOOK, non_finite=dict(type='lckd_mm.NonFiniteHook'))
        states, seen = States(), AtValidation()
        return run(cfg, states, seen), states.states, seen.weights

    _, states, validated = start(4)
    parameters = [key for key in validated if key in states[0] and 'running' not in key and 'num_batches' not in key]
    assert len(parameters) > 50
    average = {key: states[1][key] for key in parameters}  # the first update copies
    for state in states[2:]:
        average = {key: 0.75 * average[key] + 0.25 * state[key] for key in parameters}
    saved = torch.load(tmp_path / 'iter_4.pth')
    for key in parameters:
        torch.testing.assert_close(validated[key], average[key])
        assert torch.equal(saved['state_dict'][key], validated[key])
        assert torch.equal(saved['ema_state_dict'][f'module.{key}'], states[-1][key])

    runner, states, _ = start(6, resume=True)
    (hook,) = [h for h in runner.hooks if isinstance(h, EMAHook)]
    assert len(states) == 3 and int(hook.ema_model.steps) == 6
    for key in parameters:
        assert torch.equal(states[0][key], saved['ema_state_dict'][f'module.{key}'])
        expected = average[key]
        for state in states[1:]:
            expected = 0.75 * expected + 0.25 * state[key]
        torch.testing.assert_close(hook.ema_model.module.state_dict()[key], expected)


# --- activation checkpointing ---


@pytest.mark.parametrize('host', HOSTS)
def test_the_hosts_checkpointing_changes_no_gradient_of_taps_outside_and_is_refused_around_a_tap(built, host):
    results = []
    for with_cp in (False, True):
        model, images, samples = built(host, with_cp=with_cp)
        torch.manual_seed(2)
        losses = model.loss(images, samples)
        model.parse_losses(losses)[0].backward()
        results.append((losses, gradients(model)))
    (plain, grads), (losses, others) = results
    assert torch.equal(plain['loss_lipschitz'], losses['loss_lipschitz']) and grads.keys() == others.keys()
    for name, gradient in grads.items():
        torch.testing.assert_close(others[name], gradient, msg=name)
    model, images, samples = built(host, taps=dict(stage2='backbone.layer2.1.conv2@in'), with_cp=True)
    with pytest.raises(ValueError, match=r"'stage2'.*use_reentrant=False.*ActivationCheckpointHook"):
        model.loss(images, samples)


def checkpointed_run(scenes, tmp_path, teacher_file, hooks, **extra):
    teacher, file = teacher_file('mmseg')
    model = distiller('mmseg', segmentor(4), teacher, file)
    model['taps']['stage2'] = 'backbone.layer2.1.conv2@in'
    cfg = config('mmseg', scenes, tmp_path, model, iters=3, custom_hooks=hooks, **extra)
    cfg.default_hooks.distillation = HOOK
    states = States()
    return run(cfg, states), states.states


def test_mmengines_checkpointing_is_refused_and_the_hook_is_the_cure(scenes, tmp_path, teacher_file):
    with pytest.raises(ValueError, match=r"'stage2'.*ActivationCheckpointHook"):
        checkpointed_run(scenes, tmp_path / 'a', teacher_file, [], activation_checkpointing=['backbone.layer2'])
    _, plain = checkpointed_run(scenes, tmp_path / 'b', teacher_file, [])
    hook = dict(type='lckd_mm.ActivationCheckpointHook', modules=['backbone.layer1', 'backbone.layer2'])
    runner, states = checkpointed_run(scenes, tmp_path / 'c', teacher_file, [hook])
    for before, after in zip(plain, states, strict=True):
        # Weights, connectors and statistics, which a second forward would have moved twice.
        for name, value in before.items():
            torch.testing.assert_close(after[name], value, rtol=0, atol=0, msg=name)
    assert 'forward' not in runner.model.student.backbone.layer2.__dict__


def test_the_hook_runs_its_modules_again(built):
    model, images, samples = built()
    hook = ActivationCheckpointHook(['backbone.layer3'])
    hook.before_train(SimpleNamespace(model=model))
    calls = []
    handle = model.student.backbone.layer3[0].conv1.register_forward_hook(lambda *_: calls.append(1))
    total, _ = model.parse_losses(model.loss(images, samples))
    assert len(calls) == 1
    total.backward()
    assert len(calls) == 2
    handle.remove()
    with pytest.raises(ValueError, match=r"'backbone\.layer9'"):
        ActivationCheckpointHook('backbone.layer9').before_train(SimpleNamespace(model=model))


# --- torch.compile ---


class Outputs(Hook):
    def __init__(self):
        self.values = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.values.append({k: float(v) for k, v in outputs.items()})


@pytest.mark.parametrize(
    'host, compiler',
    [*((host, dict(backend='eager')) for host in HOSTS), ('mmseg', dict(backend='aot_eager')), ('mmseg', True)],
)
@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_compiled_train_step_trains_as_an_eager_one(scenes, tmp_path, teacher_file, host, compiler, monkeypatch):
    # The folder that all processes share may hold code for another ATEN_CPU_CAPABILITY: torch 2.10 crashes with it.
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', str(tmp_path / 'inductor'))
    teacher, file = teacher_file(host)
    results = []
    for i, extra in enumerate(({}, dict(compile=compiler))):
        torch._dynamo.reset()
        model = distiller(host, HOSTS[host][0](4), teacher, file)
        cfg = config(host, scenes, tmp_path / str(i), model, iters=2, **extra)
        cfg.default_hooks.update(distillation=HOOK, non_finite=dict(type='lckd_mm.NonFiniteHook', action='skip'))
        outputs = Outputs()
        run(cfg, outputs)
        results.append(outputs.values)
    assert len(results[0]) == len(results[1]) == 2
    for eager, compiled in zip(*results):
        assert compiled == pytest.approx(eager, rel=1e-3, abs=1e-4)


@torch._dynamo.register_backend
def lckd_listing(graph, _):
    LISTED.extend(str(node.target) for node in graph.graph.nodes)
    return graph.forward


LISTED = []


def test_the_nets_are_outside_of_a_compiled_train_step(built):
    """Inside, taps fire only by recompilation in each step, until torch gives up."""
    model, images, samples = built()
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.02))

    def step(images):
        losses = model(images + 1, samples, mode='loss')
        wrapper.update_params(model.parse_losses(losses)[0])
        return losses['loss_kd']

    LISTED.clear()
    torch._dynamo.reset()
    assert torch.compile(step, backend='lckd_listing')(images).isfinite()
    assert any('add' in name for name in LISTED) and not any('conv' in name for name in LISTED)


def in_place(net):
    net.backbone.layer2.compile(backend='eager')


def wrapped(net):
    net.backbone.layer2 = torch.compile(net.backbone.layer2, backend='eager')


def whole(net):
    net.compile(backend='eager')


@pytest.mark.parametrize('how', [in_place, wrapped, whole])
def test_a_tap_inside_a_compiled_module_is_refused_before_the_first_iteration(built, how):
    for side in ('student', 'teacher'):
        model, images, samples = built()
        how(model.student if side == 'student' else model.teacher.model)
        with pytest.raises(ValueError, match=rf"{side} tap 'stage\d'.*torch\.compile"):
            model.loss(images, samples)


def test_a_compiled_module_without_taps_inside_stays_compiled():
    torch.manual_seed(0)
    net = build_model(detector(4), 'mmdet').eval()
    taps = FeatureTaps(dict(a='backbone.layer2', b='backbone.layer4.0.conv1'))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        with taps.record(net) as plain:
            net(images, None, mode='tensor')
        frames = []
        net.backbone.layer2 = torch.compile(net.backbone.layer2, backend=lambda g, _: frames.append(g) or g.forward)
        net(images, None, mode='tensor')  # compiled without hooks
        taps.check_paths(net)
        with taps.record(net) as compiled:
            net(images, None, mode='tensor')
    assert frames
    for name in plain:
        torch.testing.assert_close(compiled[name], plain[name])
