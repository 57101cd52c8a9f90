"""Terms with `queries` of Mask2Former: the teacher's mask decoder judges both nets' memory by its own queries."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmcv.ops import point_sample
from mmcv.transforms import BaseTransform
from mmdet.models.utils import get_uncertain_point_coords_with_randomness
from mmdet.registry import TRANSFORMS
from mmdet.structures.mask import BitmapMasks
from run_helpers import HOOK, config, run, scalars, scenes, segmentor
from small_nets import mask2former, narrow
from test_queries import detr, judged
from test_reuse import batch, built, model

from lckd_mm.functional import dice_distance, point_values, uncertain_points
from lckd_mm.hosts import build_model, load_config
from lckd_mm.losses import MaskQueryLoss
from lckd_mm.taps import Pass

HEADS = dict(mmseg='decode_head', mmdet='panoptic_head')
ON = ['mask', 'memory0', 'memory1', 'memory2']


def small(host='mmseg', layers=3, width=16, **extra):
    return mask2former(layers, host, width, **extra)


def maskformer():
    cfg = load_config('mmseg::maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512.py').model.to_dict()
    cfg = narrow(cfg, {256: 16, 128: 8, 2048: 16, 32: 4, 512: 64, 150: 3, 100: 5})
    cfg['backbone'] = small()['backbone']
    cfg['decode_head'].update(in_channels=[4, 8, 16, 32])
    cfg['decode_head']['loss_cls']['class_weight'] = [1.0] * 3 + [0.1]
    cfg['decode_head']['transformer_decoder']['num_layers'] = 2
    return cfg


def taps(host='mmseg', levels=3):
    path = f'{HEADS[host]}.pixel_decoder'
    return dict(mask=f'{path}[0]', **{f'memory{i}': f'{path}[1][{i}]' for i in range(levels)})


def term(**extra):
    return dict(loss_queries=dict(dict(loss=dict(type='lckd_mm.MaskQueryLoss'), on=ON, queries=True), **extra))


def distiller(tmp_path, student, teacher, host='mmseg', addresses=None, others=None, **extra):
    return built(tmp_path, term(**extra) | (others or {}), addresses or taps(host), student, teacher, host)


# ---- what is compared


NETS = dict(mmseg=small, mmdet=lambda: small('mmdet'), maskformer=maskformer)


def pair(tmp_path, kind, **extra):
    """A student and a teacher of one kind."""
    if kind != 'maskformer':
        return distiller(tmp_path, NETS[kind](), NETS[kind](), kind, **extra)
    addresses = dict(mask='decode_head.pixel_decoder[0]', memory='decode_head.pixel_decoder[1]')
    return distiller(tmp_path, maskformer(), maskformer(), addresses=addresses, on=['mask', 'memory'], **extra)


@pytest.mark.parametrize('kind', NETS)
def test_a_student_with_the_teacher_s_weights_loses_nothing(tmp_path, kind):
    found = pair(tmp_path, kind)
    found.student.load_state_dict(found.teacher.model.state_dict())
    found.eval()
    found.student.training = True
    with torch.no_grad():
        value, seen, data = judged(found)
    assert value.abs() < 1e-5
    torch.testing.assert_close(seen['student'], seen['teacher'], rtol=1e-4, atol=1e-5)
    net = found.teacher.model
    head = getattr(net, HEADS.get(kind, 'decode_head'))
    scores, masks = head(net.extract_feat(data['inputs']), data['data_samples'])
    torch.testing.assert_close(seen['teacher'], [torch.stack(list(scores)), *masks], rtol=1e-5, atol=1e-5)
    assert len(masks) == (2 if kind == 'maskformer' else 4)


@pytest.mark.parametrize('kind', NETS)
def test_each_layer_asks_the_teacher_s_queries_of_the_student_s_maps(tmp_path, kind):
    """Against the layers run by hand; only the student gets a gradient, up to its pixel decoder."""
    found = pair(tmp_path, kind).train()
    net = found.teacher.model
    head, own = (getattr(of, HEADS.get(kind, 'decode_head')) for of in (net, found.student))
    layers, calls, pixels = head.transformer_decoder.layers, [], dict(student=[], teacher=[])
    hooks = [
        m.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
        for m in layers
    ]
    hooks += [
        of.pixel_decoder.register_forward_hook(lambda _, __, y, key=key: pixels[key].append(y))
        for key, of in dict(student=own, teacher=head).items()
    ]
    value, seen, _ = judged(found)
    for hook in hooks:
        hook.remove()
    mask, maps = pixels['student'][0]
    if kind == 'maskformer':
        keys, queries = [head.decoder_input_proj(maps).flatten(2).mT], []
    else:
        keys = [
            proj(x).flatten(2).mT + level
            for proj, x, level in zip(head.decoder_input_projs, maps, head.level_embed.weight)
        ]
        queries = [head.query_feat.weight.expand(2, -1, -1)]
    for i, (layer, (args, kwargs)) in enumerate(zip(layers, calls)):
        key = keys[i % len(keys)]
        assert key.shape == kwargs['key'].shape and (key - kwargs['key']).abs().max() > 1e-3
        queries.append(layer(*args, **{**kwargs, 'key': key, 'value': key}))
    queries = [head.transformer_decoder.post_norm(x) for x in queries]
    expected = [torch.einsum('bqc,bchw->bqhw', head.mask_embed(x), mask) for x in queries]
    expected.insert(0, torch.stack([head.cls_embed(x) for x in queries]))
    torch.testing.assert_close(seen['student'], expected)
    first = 0 if kind == 'maskformer' else 1  # before the first layer, scores depend on no memory
    for a, b in zip([*seen['student'][0][first:], *expected[1:]], [*seen['teacher'][0][first:], *seen['teacher'][1:]]):
        assert (a - b).abs().max() > 1e-4
    found.zero_grad()
    value.backward()
    reached = [own.pixel_decoder, found.student.backbone]
    assert all(sum(p.grad.abs().sum() for p in m.parameters() if p.grad is not None) > 0 for m in reached)
    assert all(p.grad is None for p in net.parameters())
    assert all(p.grad is None for p in own.transformer_decoder.parameters())
    assert not found.teacher._calls
    assert all('forward' not in vars(m) for m in net.modules())


def test_a_student_of_another_width_depth_and_number_of_queries_learns(tmp_path):
    student = small(layers=1, width=8, queries=3, classes=7)
    student['decode_head']['positional_encoding'] = dict(num_feats=4, normalize=True)
    with pytest.raises(
        ValueError, match=r"queries=True at tap 'mask': student \(1, 8, .*; connector=dict\(type=.*ConvBN"
    ):
        distiller(tmp_path, student, small())
    found = distiller(tmp_path, student, small(), connector=dict(type='lckd_mm.ConvBN')).train()
    value, _, _ = judged(found)
    value.backward()
    connectors = found.terms['loss_queries'].connectors
    assert len(connectors) == 4 and all(p.grad.abs().sum() > 0 for p in connectors.parameters() if p.dim() > 1)


@pytest.mark.parametrize(('host', 'other'), [('mmseg', 'mmdet'), ('mmdet', 'mmseg')])
def test_a_student_of_one_host_learns_from_a_teacher_of_the_other(tmp_path, host, other):
    """A teacher of mmseg gives its maps with its loss alone, whose ground truth the student's samples lack."""
    found = build_model(across(tmp_path, host, other), host)
    found.init_weights()
    value, seen, data = judged(found.train())
    assert value > 0 and seen['teacher'][0].shape == (4, 2, 5, 4)
    net = found.teacher.model
    inputs = found.teacher.convert(data['inputs'], data['data_samples'])
    plain = getattr(net, HEADS[other])(net.extract_feat(inputs), data['data_samples'])[0]
    torch.testing.assert_close(seen['teacher'][0], torch.stack(plain), rtol=1e-4, atol=1e-5)


def across(tmp_path, host, other, **student):
    cfg = model(tmp_path, term(), taps(host), small(host, **student), small(other), other, teacher_taps=taps(other))
    cfg['teacher']['model']['_scope_'] = other
    return cfg


def test_the_student_s_classes_may_be_others(tmp_path):
    """Also where there are as many as channels, so that mask features look like class scores."""
    found = distiller(tmp_path, small(classes=16), small(classes=16))
    found.teacher.classes = [f'kind {i}' for i in range(16)]
    found.match_classes([str(i) for i in range(16)])


# ---- the loss


def test_the_loss_by_hand():
    torch.manual_seed(0)
    layers, images, queries, classes = 2, 3, 4, 5
    ours, theirs = torch.randn(2, layers, images, queries, classes + 1, dtype=torch.float64).unbind()
    our_masks, their_masks = 3 * torch.randn(2, layers, images, queries, 6, 8, dtype=torch.float64)
    loss = MaskQueryLoss(scores=2.0, masks=3.0, dice=0.5, points=40)
    generator = torch.Generator().manual_seed(torch.initial_seed() + 1)
    expected = 0.0
    for layer in range(layers):
        points = uncertain_points(our_masks[layer].flatten(0, 1), 40, 3.0, 0.75, generator)
        divergence = distance = total = 0.0
        for image in range(images):
            for query in range(queries):
                p = theirs[layer, image, query].softmax(0)
                divergence += (p * (p.log() - ours[layer, image, query].log_softmax(0))).sum()
                at = points[image * queries + query][None]
                s, t = (
                    point_sample(of[layer, image, query][None, None], at).flatten().sigmoid()
                    for of in (our_masks, their_masks)
                )
                entropy = F.binary_cross_entropy(t, t)
                overlap = 1 - (2 * (s * t).sum() + 1) / ((s * s).sum() + (t * t).sum() + 1)
                w = p[:-1].sum()
                distance += w * (3.0 * (F.binary_cross_entropy(s, t) - entropy) + 0.5 * overlap)
                total += w
        expected += 2.0 * divergence / (images * queries) + distance / total
    torch.testing.assert_close(loss([ours, *our_masks], [theirs, *their_masks]), expected)
    assert loss([ours, *our_masks], [ours, *our_masks]).abs() < 1e-9
    first, second = (loss([ours, *our_masks], [theirs, *their_masks]) for _ in range(2))
    assert first != second and loss.draws == 4


def test_equal_masks_have_no_gradient():
    """A dice without squares would harden the teacher's soft masks."""
    masks = torch.randn(1, 2, 8, 8)
    ours, scores = masks.clone().requires_grad_(), torch.zeros(1, 1, 2, 3)
    value = MaskQueryLoss(points=100)([scores, ours], [scores, masks])
    value.backward()
    assert value.abs() < 1e-6 and ours.grad.abs().max() < 1e-6


def test_dice_is_0_of_equal_masks_and_near_1_of_disjoint_ones():
    mask = (torch.arange(1000) < 400).double()[None]
    assert dice_distance(mask, mask) == 0
    torch.testing.assert_close(dice_distance(mask, 1 - mask), torch.tensor([1000 / 1001]).double())
    torch.testing.assert_close(dice_distance(0.5 * mask, mask), torch.tensor([100 / 501]).double())


def test_the_points_are_those_of_mmdet():
    logits = torch.randn(3, 6, 9)
    points = uncertain_points(logits, 40, 3.0, 0.75, torch.Generator().manual_seed(5))
    torch.manual_seed(5)
    expected = get_uncertain_point_coords_with_randomness(logits[:, None], None, 40, 3.0, 0.75)
    assert torch.equal(points, expected)
    torch.testing.assert_close(point_values(logits, points), point_sample(logits[:, None], points)[:, 0])
    assert uncertain_points(logits, 40, 1.0, 0.0, torch.Generator()).shape == (3, 40, 2)


def test_the_loss_draws_as_many_points_as_the_teacher_s_own(tmp_path):
    loss = distiller(tmp_path, small(), small()).terms['loss_queries'].loss
    assert (loss.count, loss.drawing) == (50, [3.0, 0.75])
    fewer = dict(type='lckd_mm.MaskQueryLoss', points=7)
    assert distiller(tmp_path, small(), small(), loss=fewer).terms['loss_queries'].loss.count == 7


# ---- the teacher's pass


def test_the_teacher_runs_once_and_not_its_own_loss(tmp_path):
    """Also beside a term on the backbone; and the student's own losses, which draw points, are what they are alone."""
    beside = dict(loss_fit=dict(loss=dict(type='lckd_mm.FitNetsLoss'), on='stage'))
    found = distiller(tmp_path, small(), small(), 'mmseg', taps() | dict(stage='backbone.layer2'), beside).train()
    head, runs = found.teacher.model.decode_head, []
    head.loss_by_feat = None
    found.teacher.model.backbone.register_forward_pre_hook(lambda *_: runs.append(1))
    assert found.teacher_taps.traces['mask'].passes[0] == Pass('loss')  # a prediction warns of images of several sizes
    plain, data = copy.deepcopy(found.student), batch(found)
    torch.manual_seed(6)
    losses = found.loss(**copy.deepcopy(data))
    state = torch.get_rng_state()
    torch.manual_seed(6)
    alone = plain(data['inputs'], data['data_samples'], mode='loss')
    assert len(runs) == 1
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(losses[name], value) for name, value in alone.items())
    assert losses['loss_queries'] > 0 < losses['loss_fit']


def test_masks_are_scored_in_float32_where_the_teacher_runs_in_bfloat16(tmp_path):
    found = pair(tmp_path, 'mmseg').train()
    with torch.autocast('cpu', torch.bfloat16):
        value, seen, _ = judged(found)
    for masks in (*seen['student'], *seen['teacher']):
        assert masks.dtype == torch.float32 and (masks.bfloat16().float() != masks).float().mean() > 0.9
    value.backward()
    assert torch.isfinite(value)


# ---- what is refused


@pytest.mark.parametrize(
    ('extra', 'student', 'teacher', 'addresses', 'says'),
    [
        (dict(loss=dict(type='lckd_mm.QueryLoss')), small, small, taps(), r'scores and masks .*lckd_mm.MaskQueryLoss'),
        (dict(loss=dict(type='lckd_mm.KDLoss')), small, small, taps(), r'KDLoss does not .*lckd_mm.MaskQueryLoss'),
        (dict(queries=False), small, small, taps(), 'MaskQueryLoss and queries=False do not belong together; '),
        (
            dict(on=ON[:3]), small, small, taps(),
            r"write on=\['mask', 'memory0', 'memory1', 'memory2'\] and taps=dict\(mask='decode_head.pixel_decoder\[0\]",
        ),
        (dict(on=[*ON[1:], 'mask']), small, small, taps(), r"teacher tap 'memory0' is .*; write on=\['mask', 'me"),
        (dict(on='stage'), segmentor, segmentor, dict(stage='backbone.layer1'), 'or a Mask2Former.* and got EncoderD'),
        (dict(on='stage'), small, small, dict(stage='backbone.layer1'), r'and taps=dict\(mask='),
        ({}, lambda: segmentor(4), small, taps(), "student tap 'mask': no module 'decode_head.pixel_decoder' in Enc"),
        (dict(loss=dict(type='lckd_mm.MaskQueryLoss', points=0)), small, small, taps(), 'points must be at least 1'),
        (
            dict(loss=dict(type='lckd_mm.MaskQueryLoss', scores=0, masks=0, dice=0)), small, small, taps(),
            'scores, masks and dice are 0, so that nothing is compared; give one a weight',
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_while_the_model_is_built(tmp_path, extra, student, teacher, addresses, says):
    student, teacher = (of(4) if of is segmentor else of() for of in (student, teacher))
    with pytest.raises((ValueError, KeyError), match=says):
        built(tmp_path, term(**extra), addresses, student, teacher, 'mmseg')


def test_a_student_of_fewer_levels_is_refused(tmp_path):
    student = small()
    student['backbone']['out_indices'] = (1, 2, 3)
    head = student['decode_head']
    head.update(in_channels=[8, 16, 32], strides=[8, 16, 32], num_transformer_feat_level=2)
    head['pixel_decoder']['num_outs'] = head['pixel_decoder']['encoder']['layer_cfg']['self_attn_cfg']['num_levels'] = 2
    says = r"student tap 'memory2': .*pixel_decoder\[1\] gives a tuple of 2, which has no \[2\]; list all"
    with pytest.raises(ValueError, match=says):
        distiller(tmp_path, student, small())


def test_a_teacher_whose_decoder_runs_otherwise_is_refused(tmp_path):
    found = pair(tmp_path, 'mmseg').train()
    head = found.teacher.model.decode_head
    own, more = head.forward, iter([1.0, 2.0])
    head.forward = lambda *args: tuple([x + step for x in of] for step in [next(more, 3.0)] for of in own(*args))
    with pytest.raises(
        ValueError, match=r"of EncoderDecoder runs otherwise than Mask2Former's .*; name a teacher such as"
    ):
        judged(found)


def test_another_decoder_of_the_student_is_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"queries=True reads the teacher's memory, .*; write on=\['mask', .* taps=dict"
    ):
        built(tmp_path, term(on='memory'), dict(memory='encoder'), detr('dino'), small('mmdet'), 'mmdet',
              teacher_taps=dict(memory='panoptic_head.pixel_decoder[1][0]'))  # fmt: skip


# ---- runs


@TRANSFORMS.register_module(force=True)
class BoxMasks(BaseTransform):
    """Each box as a mask."""

    def transform(self, results):
        height, width = results['img_shape']
        masks = np.zeros((len(results['gt_bboxes']), height, width), np.uint8)
        for mask, (x, y, right, bottom) in zip(masks, results['gt_bboxes'].tensor.int().tolist()):
            mask[y:bottom, x:right] = 1
        return results | dict(gt_masks=BitmapMasks(masks, height, width))


def runner_config(host, scenes, folder, net):
    cfg = config(host, scenes, folder, net, iters=4)
    cfg.default_hooks.resume = dict(type='lckd_mm.ResumeHook')
    cfg.default_hooks.checkpoint.interval = 2
    cfg.default_hooks.logger.interval = 1
    cfg.optim_wrapper.optimizer.lr = 1e-3
    if host == 'mmdet':
        cfg.train_dataloader.dataset.pipeline.insert(-1, dict(type='BoxMasks'))
    return cfg


@pytest.mark.parametrize('host', HEADS)
def test_a_run_of_the_runner(tmp_path, scenes, host):
    """With the rehearsal; a run that goes on from a checkpoint is the same to the bit, points included."""
    net = small(host, layers=2, classes=11 if host == 'mmseg' else 10)
    nets, states, logged = model(tmp_path, term(), taps(host), net, net, host), {}, {}
    for name in ('whole', 'rest'):
        cfg = runner_config(host, scenes, tmp_path / name, nets)
        cfg.default_hooks.distillation = HOOK
        if name == 'rest':
            cfg.resume, cfg.load_from = True, str(tmp_path / 'whole' / 'iter_2.pth')
        runner = run(cfg)
        logged[name] = [row['loss_queries'] for row in scalars(cfg.work_dir) if 'loss_queries' in row]
        states[name] = runner.model.state_dict() | runner.model.distillation_state()
    assert len(logged['whole']) == 4 and logged['whole'][-2:] == logged['rest']
    assert all(torch.equal(value, states['rest'][key]) for key, value in states['whole'].items())
    assert states['whole']['loss_queries.loss.draws'] > 4
    state = torch.load(tmp_path / 'whole' / 'iter_4.pth', weights_only=False)['state_dict']
    build_model(net, host).load_state_dict(state)


@pytest.mark.parametrize(('host', 'other'), [('mmseg', 'mmdet'), ('mmdet', 'mmseg')])
def test_a_run_across_hosts(tmp_path, scenes, host, other):
    nets = across(tmp_path, host, other, classes=11 if host == 'mmseg' else 10)
    cfg = runner_config(host, scenes, tmp_path / 'run', nets)
    cfg.default_hooks.distillation = HOOK
    run(cfg)
    logged = [row['loss_queries'] for row in scalars(cfg.work_dir) if 'loss_queries' in row]
    assert len(logged) == 4 and all(0 < value < float('inf') for value in logged)


@pytest.mark.parametrize('host', HEADS)
def test_weight_zero_is_the_plain_run_to_the_bit(tmp_path, scenes, host):
    """Once with the term idle, once with its value computed and taken by a weight that rounds it away."""
    net = small(host, layers=2, classes=11 if host == 'mmseg' else 10)
    states = []
    for weight in (None, 0.0, 1e-40):
        nets = net if weight is None else model(tmp_path, term(weight=weight), taps(host), net, net, host)
        cfg = runner_config(host, scenes, tmp_path / str(weight), nets)
        if weight is not None:
            cfg.default_hooks.distillation = HOOK
        states.append(run(cfg).model.state_dict())
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(value, state[key]) for key, value in states[0].items())
