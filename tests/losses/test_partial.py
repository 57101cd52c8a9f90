"""PartialKDLoss: its function, its refusals, the teacher's rows, and runs with GradientRescaleHook."""

import math
import types

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.structures import PixelData
from run_helpers import HOOK, HOSTS, config, distiller, run, scalars, scenes, teacher_file
from torch import nn

from lckd_mm.functional import partial_target, row_similarities, target_divergence
from lckd_mm.functional.logits import PARTIAL_KINDS
from lckd_mm.hosts import build_model
from lckd_mm.losses import KDLoss, PartialKDLoss

DOUBLE = torch.float64
GROUPS = [0, 0, 1, 1, 2]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def loss_of(kind, **extra):
    loss = PartialKDLoss(kind, superclasses=GROUPS if kind == 'rel' else None, **extra)
    loss.bind([nn.Linear(3, 5)], 'term')
    return loss


def labelled(*labels):
    from mmpretrain.structures import DataSample

    return [DataSample().set_gt_label(label) for label in labels]


def test_full_and_topk_of_all_are_kd():
    student, teacher = torch.randn(2, 6, 5, dtype=DOUBLE)
    expected = KDLoss(tau=3.0)(student, teacher)
    for loss in (PartialKDLoss('full', tau=3.0), PartialKDLoss('topk', tau=3.0, k=5)):
        torch.testing.assert_close(loss(student, teacher), expected, rtol=1e-10, atol=0)
    plain = PartialKDLoss('full', tau=3.0, tau_squared=False)(student, teacher)
    torch.testing.assert_close(plain * 9, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize('kind', PARTIAL_KINDS)
def test_it_is_the_mean_of_its_function(kind):
    student, teacher = torch.randn(2, 4, 5, dtype=DOUBLE)
    loss, labels = loss_of(kind, tau=2.0, k=0.4), torch.tensor([0, 4, 2, 1])
    soft = partial_target(
        kind, teacher, labels, 2.0, 2, loss.similarities, loss.siblings, (0.6, 0.05), 0.1
    )  # fmt: skip
    expected = 4 * target_divergence(student, soft, 2.0).mean()
    torch.testing.assert_close(loss(student, teacher, labelled(*labels)), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize('kind', PARTIAL_KINDS)
def test_ignored_positions_are_left_out_even_with_infinite_scores(kind):
    from mmseg.structures import SegDataSample

    student, teacher = torch.randn(2, 2, 5, 3, 4, dtype=DOUBLE)
    labels = torch.randint(5, (2, 3, 4))
    labels[0, 1, 2] = 255
    valid = labels != 255
    loss = loss_of(kind)
    rows = [z.permute(0, 2, 3, 1)[valid] for z in (student, teacher)]
    expected = loss(*rows, labelled(*labels[valid].tolist()))
    teacher[0, :, 1, 2] = student[0, 3, 1, 2] = math.inf
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label[None])) for label in labels]
    value = loss(student.requires_grad_(), teacher, samples)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)
    value.backward()
    assert (student.grad.abs().sum(1) > 0).equal(valid)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(kind='half'), "unknown kind 'half'"),
        (dict(tau=0.0), 'tau must be above 0, got 0.0'),
        (dict(kind='sim', alpha='x'), "alpha must be a finite number, got 'x'"),
        (dict(kind='topk', k=1.5), 'k is a number of classes'),
        (dict(kind='topk', k=0), 'k must be at least 1, got 0'),
        (dict(kind='rel'), r"superclasses .* kind='rel'"),
        (dict(kind='pt', superclasses=[0, 0]), r"superclasses .* kind='rel'"),
        (dict(kind='label_smoothing', epsilon=2.0), 'epsilon must be at most 1'),
        (dict(kind='rel', superclasses=['a']), 'superclasses must be an integer'),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        PartialKDLoss(**arguments)


def test_bad_input():
    student = torch.randn(2, 5)
    with pytest.raises(ValueError, match=r'student \(2, 5\) and teacher \(2, 4\) differ in shape'):
        PartialKDLoss('full')(student, torch.randn(2, 4))
    with pytest.raises(ValueError, match="PartialKDLoss of kind 'pt': needs one label per sample"):
        PartialKDLoss('pt')(student, student, None)
    with pytest.raises(ValueError, match='3 superclasses, but 5 classes'):
        PartialKDLoss('rel', superclasses=[0, 0, 1])(student, student, labelled(0, 1))
    with pytest.raises(ValueError, match='logit layer, and the tap is a ReLU'):
        PartialKDLoss('sim').bind([nn.ReLU()], 'term')


def test_heads_of_sigmoids_and_of_detectors_are_refused():
    sigmoid = types.SimpleNamespace(loss_decode=types.SimpleNamespace(use_sigmoid=True), num_classes=5)
    with pytest.raises(ValueError, match="kind 'pt': SimpleNamespace has a sigmoid per class"):
        PartialKDLoss('pt').read_head(sigmoid)
    with pytest.raises(ValueError, match="kind 'full': the positions of the detection head"):
        PartialKDLoss('full').read_head(types.SimpleNamespace(cls_out_channels=5))


# ---- in runs


def distillation(host, teacher_file, loss, width=4, **term):
    teacher, path = teacher_file(host)
    model = distiller(host, HOSTS[host][0](width), teacher, path)
    model['terms'] = dict(loss_kd=dict(loss=loss, on='logits', **term))
    return model


def test_the_rows_are_those_of_the_loaded_teacher(scenes, teacher_file, tmp_path):
    loss = dict(type='lckd_mm.PartialKDLoss', kind='sim')
    model = distillation('mmpretrain', teacher_file, loss)
    cfg = config('mmpretrain', scenes, tmp_path / 'run', model, iters=2)
    cfg.custom_hooks = [dict(type='EMAHook')]
    cfg.default_hooks.distillation = HOOK
    runner = run(cfg)
    rows = torch.load(tmp_path / 'teacher-mmpretrain.pth')['state_dict']['head.fc.weight']
    torch.testing.assert_close(runner.model.terms['loss_kd'].loss.similarities, row_similarities(rows, 0.5, 0.3))
    # They follow from the teacher, and are in no file.
    saved = torch.load(tmp_path / 'run' / 'iter_2.pth', weights_only=False)['lckd_mm']['terms']
    assert not any('similarities' in key for key in saved)


def test_rows_of_a_pooled_tap_are_refused_before_training(teacher_file, scope):
    scope('mmpretrain')
    model = distillation('mmpretrain', teacher_file, dict(type='lckd_mm.PartialKDLoss', kind='sim'), width=8)
    model['terms']['loss_kd']['on'] = 'pooled'
    model['taps']['pooled'] = 'neck[0]'
    with pytest.raises(ValueError, match="term 'loss_kd': PartialKDLoss of kind 'sim' reads the rows"):
        build_model(model, 'mmpretrain')


def test_a_detector_is_refused_before_training(teacher_file, scope):
    scope('mmdet')
    with pytest.raises(ValueError, match="PartialKDLoss of kind 'pt': the positions of the detection head RetinaHead"):
        build_model(distillation('mmdet', teacher_file, dict(type='lckd_mm.PartialKDLoss', kind='pt')), 'mmdet')


@pytest.mark.parametrize('kind', ['full', 'pt'])
def test_the_hook_logs_what_the_gradient_says(kind, scenes, teacher_file, tmp_path):
    model = distillation(
        'mmpretrain', teacher_file, dict(type='lckd_mm.PartialKDLoss', kind=kind, tau_squared=False), weight=0.7
    )
    model['student']['head']['loss']['loss_weight'] = 0.3
    cfg = config('mmpretrain', scenes, tmp_path / 'run', model, iters=1)
    cfg.train_dataloader.batch_size = 8
    cfg.default_hooks.logger.interval = 1
    cfg.custom_hooks = [dict(type='lckd_mm.GradientRescaleHook')]
    seen = {}

    class Spy(Hook):
        def before_train(self, runner):
            self.handle = runner.model.terms['loss_kd'].loss.register_forward_hook(self.look, with_kwargs=True)

        @torch.enable_grad()
        def look(self, loss, args, kwargs, value):
            self.handle.remove()
            student, teacher = (z.detach().double() for z in args)
            labels = torch.cat([sample.gt_label for sample in kwargs['data_samples']])
            z = student.requires_grad_()
            task = nn.functional.cross_entropy(z, labels, reduction='sum')
            whole = 0.3 * task + 0.7 * len(z) * loss.forward(z, teacher, kwargs['data_samples'])
            rows = torch.arange(len(z)), labels
            whole, task = (torch.autograd.grad(v, z, retain_graph=True)[0][rows] for v in (whole, task))
            seen.update(factors=whole / task)

    runner = run(cfg, Spy())
    (entry,) = scalars(tmp_path / 'run')
    factors = seen['factors']
    assert len(factors) == 8
    assert entry['rescale_kd_mean'] == pytest.approx(factors.mean().item(), rel=1e-4)
    assert entry['rescale_kd_std'] == pytest.approx(factors.std(correction=0).item(), rel=1e-3)
    assert entry['rescale_kd_q05'] == pytest.approx(factors.min().item(), rel=1e-4)
    assert entry['rescale_kd_q95'] == pytest.approx(factors.max().item(), rel=1e-4)
    assert not runner.model.terms['loss_kd'].loss._forward_hooks


def test_the_hook_looks_at_kd_on_pixels_and_leaves_the_run_as_it_was(scenes, teacher_file, tmp_path):
    states = {}
    for name, hooks in (('with', [dict(type='lckd_mm.GradientRescaleHook', interval=2)]), ('without', [])):
        model = distillation('mmseg', teacher_file, dict(type='lckd_mm.KDLoss'))
        cfg = config('mmseg', scenes, tmp_path / name, model, iters=2, custom_hooks=hooks)
        cfg.default_hooks.logger.interval = 1
        states[name] = run(cfg).model.state_dict()
    assert all(torch.equal(states['with'][k], states['without'][k]) for k in states['with'])
    first = scalars(tmp_path / 'with')[0]
    assert first['rescale_kd_q05'] <= first['rescale_kd_q50'] <= first['rescale_kd_q95']


@pytest.mark.parametrize(
    ('hook', 'error', 'message'),
    [
        (dict(term='loss_at'), ValueError, "'loss_at'"),
        ({}, TypeError, 'FitNetsLoss'),
    ],
)
def test_the_hook_refuses_other_terms(hook, error, message, scenes, teacher_file, tmp_path):
    model = distillation('mmpretrain', teacher_file, dict(type='lckd_mm.FitNetsLoss'))
    cfg = config('mmpretrain', scenes, tmp_path / 'run', model, iters=1)
    cfg.custom_hooks = [dict(type='lckd_mm.GradientRescaleHook', **hook)]
    with pytest.raises(error, match=message):
        run(cfg)
