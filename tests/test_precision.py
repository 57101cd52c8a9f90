"""Half precision, big numbers and memory formats: terms stay in float32, and finite."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS, DefaultScope
from poison import States
from run_helpers import HOOK, HOSTS, built, config, count, distiller, run, scenes, segmentor, teacher_file

from lckd_mm.distillation import NonFiniteError
from lckd_mm.hooks.non_finite import GradientWatch

pytestmark = pytest.mark.filterwarnings('ignore')


def last_norms(model):
    """The norms whose outputs the taps stage1 to stage4 read."""
    return [getattr(model.backbone, f'layer{i}')[-1].bn2 for i in range(1, 5)]


STAGES = [f'stage{i}' for i in range(1, 5)]
MAPS = {
    'lipschitz': [dict(type='LipschitzLoss', gap=gap) for gap in ('log', 'relative', 'absolute')]
    + [dict(type='LipschitzLoss', normalise=True), dict(type='LONDONLoss')],
    'features': [
        dict(type=f'{name}Loss') for name in ('AB', 'AFD', 'AT', 'CWD', 'Cosine', 'FSP', 'FT', 'FitNets', 'OFD')
    ]
    + [dict(type=f'{name}Loss') for name in ('PKD', 'MGD', 'ReviewKD', 'VID')]
    + [dict(type='ExploreLoss', loss=dict(type='lckd_mm.ATLoss'))],
    'relations': [dict(type='RKDLoss'), dict(type='SPLoss'), dict(type='CRDLoss', samples=4, negatives=8)],
    'critics': [
        dict(
            type='AdversarialLoss',
            critic=dict(type='lckd_mm.ConvCritic'),
            loss=dict(type='lckd_mm.LGANLoss'),
            penalty=dict(type='lckd_mm.GradientPenalty', kind='gp'),
        ),
        dict(type='AdversarialLoss', critic=dict(type='lckd_mm.ConvCritic'), loss=dict(type='lckd_mm.LSGANLoss')),
    ],
    'logits': [dict(type='KDLoss'), dict(type='DKDLoss'), dict(type='PartialKDLoss', kind='pt')]
    + [dict(type='DISTLoss'), dict(type='WSLDLoss'), dict(type='KDLoss', standardise=True)]
    + [dict(type='JacobianLoss', mode=mode) for mode in ('difference', 'noise', 'gradient')],
}
DENSE = ('ScoreWeightedLoss', 'LDLoss', 'LDLoss assigned', 'BCKDLoss', 'BCKDBoxLoss')


def all_terms(groups):
    terms = {}
    for group in groups:
        for i, loss in enumerate(MAPS[group]):
            on = {'logits': 'logits', 'relations': 'stage4', 'critics': 'stage4'}.get(group, STAGES)
            terms[f'loss_{group}{i}'] = dict(loss={**loss, 'type': 'lckd_mm.' + loss['type']}, on=on)
    return terms


def check_huge(model, images, samples, dtype, reached=True):
    """One step on maps of 1e4, each term for itself; ``reached``: whether their gradients reach the student."""
    with torch.no_grad():
        for net in (model.student, model.teacher.model):
            for norm in last_norms(net):
                norm.weight.fill_(1e4)
            if hasattr(net, 'decode_head'):
                net.decode_head.conv_seg.weight.mul_(1e4 / net.decode_head.conv_seg.weight.abs().mean())
    seen = {}
    model.observers.append(lambda s, t, connected, losses: seen.update(student=s, teacher=t))
    watch = GradientWatch()
    for name, term in model.terms.items():
        term.student.follow = partial(watch.follow, name)
    with torch.autocast('cpu', dtype):
        losses = model.loss(images, samples)
    for side in seen.values():
        for name in STAGES:
            assert side[name].dtype == dtype and 1e4 < side[name].abs().max() < 1e6, name
    for name in model.terms:
        assert losses[name].dtype == torch.float32 and losses[name].isfinite(), name
    sum(losses[name] for name in model.terms).backward()
    assert watch.broken() == []
    noted = {term for term, _ in watch._flags}
    assert noted == (set(model.terms) if reached else set())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_every_loss_takes_maps_of_1e4_in_bfloat16(built):
    import lckd_mm.losses

    covered = {loss['type'] for losses in MAPS.values() for loss in losses}
    # Detectors', and an auto-encoder's own, are looked at apart; the others are parts of AdversarialLoss.
    dense = {loss.partition(' ')[0] for loss in DENSE}
    apart = {'Loss', 'FGDLoss', *dense, 'ReconstructionLoss', 'LGANLoss', 'LSGANLoss', 'GradientPenalty'}
    # tests/test_regions.py, tests/test_queries.py, tests/test_mask_queries.py, tests/test_matched_queries.py
    apart |= {'RegionBoxLoss', 'RegionMaskLoss', 'QueryLoss', 'MaskQueryLoss', 'MatchedQueryLoss'}
    assert covered | apart == set(lckd_mm.losses.__all__)
    check_huge(*built('mmseg', width=8, terms=all_terms(MAPS), bn='batch'), torch.bfloat16)


def test_fgd_takes_maps_of_1e4_in_bfloat16(built):
    terms = dict(loss_fgd=dict(loss=dict(type='lckd_mm.FGDLoss'), on=STAGES))
    check_huge(*built('mmdet', width=8, terms=terms, bn='batch'), torch.bfloat16)


@pytest.mark.parametrize('loss', DENSE)
def test_losses_of_dense_detectors_take_scores_and_boxes_of_1e4_in_bfloat16(built, loss):
    def gfl(cfg):
        anchors = dict(type='AnchorGenerator', octave_base_scale=8, scales_per_octave=1, ratios=[1.0])
        head = dict(
            type='GFLHead', num_classes=10, in_channels=8, stacked_convs=1, feat_channels=8, norm_cfg=dict(type='BN'),
            anchor_generator=dict(anchors, strides=[4, 8, 16, 32]), loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
            loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0),
        )  # fmt: skip
        for net in (cfg['student'], cfg['teacher']['model']):
            assigner = dict(type='ATSSAssigner', topk=4)
            net.update(type='GFL', bbox_head=head, train_cfg=dict(net['train_cfg'], assigner=assigner))
        cfg['teacher']['allow'] = ['bbox_head']
        cfg['taps'] |= dict(logits='bbox_head.gfl_cls#*') | {f'b{i}': f'bbox_head.scales.{i}' for i in range(4)}

    loss, _, weigh = loss.partition(' ')
    boxes = loss in ('LDLoss', 'BCKDBoxLoss')
    on = [f'b{i}' for i in range(4)] if boxes else 'logits'
    term = dict(loss=dict(type=f'lckd_mm.{loss}') | (dict(weigh=weigh) if weigh else {}), on=on)
    if loss != 'BCKDLoss':
        term['given'] = dict(scores='logits')
    model, images, samples = built('mmdet', width=8, terms=dict(loss_dense=term), bn='batch', prepare=gfl)
    with torch.no_grad():
        for net in (model.student, model.teacher.model):
            for layer in (net.bbox_head.gfl_cls, net.bbox_head.gfl_reg):
                layer.weight.mul_(1e4 / layer.weight.abs().mean())
    seen = {}
    model.observers.append(lambda s, t, connected, losses: seen.update(student=s, teacher=t))
    with torch.autocast('cpu', torch.bfloat16):
        losses = model.loss(images, samples)
    assert all(x.abs().max() > 1e4 for side in seen.values() for x in side['logits'])
    assert losses['loss_dense'].dtype == torch.float32 and losses['loss_dense'].isfinite()
    losses['loss_dense'].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_an_auto_encoder_takes_maps_of_1e4_in_bfloat16(built):
    encoder = dict(type='lckd_mm.AutoEncoder', online=True)
    terms = dict(
        loss_autoencoder=dict(loss=dict(type='lckd_mm.ReconstructionLoss'), on='stage4', teacher_connector=encoder)
    )
    check_huge(*built('mmseg', width=8, terms=terms, bn='batch'), torch.bfloat16, reached=False)


@pytest.mark.parametrize('host', HOSTS)
def test_terms_are_in_float32_under_autocast(built, host):
    model, images, samples = built(host)
    seen = {}
    model.observers.append(
        lambda s, t, connected, losses: seen.update(connected['loss_lipschitz'], raw=s['stage2'], theirs=t['stage2'])
    )
    plain = model.loss(images, samples)
    with torch.autocast('cpu', torch.bfloat16):
        half = model.loss(images, samples)
    assert seen['raw'].dtype == seen['theirs'].dtype == torch.bfloat16 and seen['stage2'].dtype == torch.float32
    for name in ('loss_lipschitz', 'loss_kd'):
        assert half[name].dtype == torch.float32
        torch.testing.assert_close(half[name], plain[name], rtol=0.02, atol=1e-3)


class Totals(Hook):
    def __init__(self):
        self.totals, self.terms = [], []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.totals.append(float(outputs['loss']))
        self.terms.append({k: v for k, v in outputs.items() if k in ('loss_lipschitz', 'loss_kd')})


@pytest.mark.parametrize('host', count(list(HOSTS), ['mmseg']))
def test_training_in_bfloat16_on_the_cpu_goes_down(scenes, tmp_path, teacher_file, host):
    teacher, file = teacher_file(host)
    cfg = config(host, scenes, tmp_path, distiller(host, HOSTS[host][0](4), teacher, file), iters=count(80, 24))
    cfg.optim_wrapper.type = 'lckd_mm.AutocastOptimWrapper'
    if host == 'mmdet':
        cfg.optim_wrapper.optimizer.lr = 0.002  # at 0.02 it diverges in float32 too
    cfg.default_hooks.update(distillation=HOOK, non_finite=dict(type='lckd_mm.NonFiniteHook'))
    totals = Totals()
    runner = run(cfg, totals)
    assert all(v.dtype == torch.float32 for terms in totals.terms for v in terms.values())
    assert all(p.dtype == torch.float32 for p in runner.model.parameters())
    # The detector's total is too noisy from one batch of two images to the next.
    values = [float(terms['loss_lipschitz']) for terms in totals.terms]
    n = len(values) // 4
    assert sum(values[-n:]) < 0.95 * sum(values[:n])


@OPTIM_WRAPPERS.register_module()
class ScaledOptimWrapper(AmpOptimWrapper):
    """AmpOptimWrapper with torch's GradScaler for the CPU, where the original refuses to be built."""

    def __init__(self, init_scale=2.0**16, **kwargs):
        OptimWrapper.__init__(self, **kwargs)
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=init_scale)
        self._scale_update_param = None

    def optim_context(self, model):
        # In float32, which overflows by a large scale as well: what is looked at is the scaler.
        return OptimWrapper.optim_context(self, model)


def scaled_run(scenes, tmp_path, teacher_file, iters, how=None, at=(), action='stop', **wrapper):
    teacher, file = teacher_file('mmseg')
    model = distiller('mmseg', segmentor(4), teacher, file)
    if how:
        loss = dict(type='lckd_mm.PoisonLoss', at=list(at), how=how)
        model['terms']['loss_bad'] = dict(loss=loss, on='stage3', connector=dict(type='lckd_mm.ConvBN'))
    cfg = config('mmseg', scenes, tmp_path, model, iters=iters)
    cfg.optim_wrapper.update(type='ScaledOptimWrapper', **wrapper)
    hook = dict(type='lckd_mm.NonFiniteHook', action=action, interval=5)
    cfg.default_hooks.update(distillation=HOOK, non_finite=hook)
    states = States()
    return run(cfg, states), states.states


def moved(states):
    weights = [{k: v for k, v in s.items() if k.startswith('decode_head.conv_seg')} for s in states]
    return [any(not torch.equal(a[k], b[k]) for k in a) for a, b in pairwise(weights)]


def test_an_overflow_by_the_loss_scale_is_the_scalers_matter(scenes, tmp_path, teacher_file):
    runner, states = scaled_run(scenes, tmp_path, teacher_file, 8, init_scale=2.0**126)
    assert moved(states)[0] is False and moved(states)[-2] is True
    assert runner.optim_wrapper.loss_scaler.get_scale() < 2.0**126


def test_a_gradient_that_is_never_finite_is_no_endless_matter(scenes, tmp_path, teacher_file):
    with pytest.raises(NonFiniteError, match=r"loss scale has fallen .*'loss_bad' at tap 'stage3'.*bfloat16"):
        scaled_run(scenes, tmp_path, teacher_file, 10, 'gradient', range(1, 11), init_scale=2.0**-7)


def test_skipping_leaves_the_scaler_sound(scenes, tmp_path, teacher_file):
    runner, states = scaled_run(scenes, tmp_path, teacher_file, 5, 'value', [2], 'skip')
    assert moved(states)[:4] == [True, False, True, True]  # the schedule ends with a learning rate of 0
    assert runner.optim_wrapper.loss_scaler.get_scale() == 2.0**16


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')
@pytest.mark.parametrize('host', HOSTS)
def test_float16_with_its_scaler_on_a_gpu(scenes, tmp_path, teacher_file, host):
    teacher, file = teacher_file(host)
    cfg = config(host, scenes, tmp_path, distiller(host, HOSTS[host][0](4), teacher, file), iters=60)
    cfg.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')
    cfg.default_hooks.update(distillation=HOOK, non_finite=dict(type='lckd_mm.NonFiniteHook'))
    totals = Totals()
    run(cfg, totals)
    assert all(v.dtype == torch.float32 for terms in totals.terms for v in terms.values())
    assert sum(totals.totals[-15:]) < 0.9 * sum(totals.totals[:15])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')
def test_an_overflow_of_float16_in_the_forward_is_named_on_a_gpu(built):
    model, images, samples = built('mmseg')
    with torch.no_grad():
        for norm in last_norms(model.teacher.model):
            norm.weight.fill_(1e7)
    with pytest.raises(NonFiniteError, match=r"teacher tap 'stage1' .*65504"), torch.autocast('cuda', torch.float16):
        model.cuda().loss(images.cuda(), [sample.cuda() for sample in samples])


@pytest.fixture
def without_onednn():
    """In torch 2.10 its AVX2 kernels corrupt memory in the backward pass of narrow channels-last convolutions."""
    with torch.backends.mkldnn.flags(enabled=False):
        yield


@pytest.mark.usefixtures('without_onednn')
@pytest.mark.parametrize('host', HOSTS)
def test_channels_last_gives_the_same(built, host):
    results = []
    for memory in (torch.contiguous_format, torch.channels_last):
        model, images, samples = built(host)
        model, images = model.to(memory_format=memory), images.to(memory_format=memory)
        seen = {}
        model.observers.append(lambda s, t, connected, losses, seen=seen: seen.update(s=s['stage2'], t=t['stage2']))
        torch.manual_seed(1)
        losses = model.loss(images, samples)
        # Both nets work in it.
        assert all(x.is_contiguous(memory_format=memory) for x in seen.values())
        total, _ = model.parse_losses(losses)
        total.backward()
        results.append((losses, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    for name in ('loss_lipschitz', 'loss_kd'):
        torch.testing.assert_close(results[0][0][name], results[1][0][name], rtol=1e-4, atol=1e-6)
    size = lambda grads: sum(g.double().square().sum() for g in grads).sqrt()  # noqa: E731
    plain, other = results[0][1], results[1][1]
    assert plain.keys() == other.keys()
    assert size(plain[n] - other[n] for n in plain) < 1e-3 * size(plain.values())


def test_every_loss_takes_channels_last_maps(built):
    values = []
    for memory in (torch.contiguous_format, torch.channels_last):
        model, images, samples = built('mmseg', width=8, terms=all_terms(MAPS))
        torch.manual_seed(1)
        values.append(model.to(memory_format=memory).loss(images.to(memory_format=memory), samples))
    for name in model.terms:
        torch.testing.assert_close(values[0][name], values[1][name], rtol=1e-3, atol=1e-5)
