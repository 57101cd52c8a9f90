"""Which axis is which: the layout that each tap gives, what losses and connectors do with it, and what is refused."""

import inspect
import re

import pytest
import torch
from mmpretrain.structures import DataSample
from small_nets import rcnn
from torch import nn

from lckd_mm import losses
from lckd_mm.connectors import Chain, Connector, ConvBN, Linear, MatchSize
from lckd_mm.functional.shapes import kind_of
from lckd_mm.hosts import build_model, fabricate_samples, load_config, row_choosers, run_once
from lckd_mm.losses import Loss
from lckd_mm.registry import MODELS
from lckd_mm.taps import FeatureTaps
from lckd_mm.taps.axes import Layer, find_channels


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def traced(model, run, **addresses):
    taps = FeatureTaps(addresses)
    assert taps.trace(model, run) == set()
    return taps


# ---- the layout of a tap


class Net(nn.Module):
    """Modules that leave the channels on various axes; the width is that of the map, so that no size tells them."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 8, 1), nn.Linear(8, 8)
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2)
        self.last, self.first, self.tokens, self.flat, self.cat, self.several = (nn.Identity() for _ in range(6))

    def forward(self, x):
        x = self.conv(x)  # (B, C, H, W)
        y = self.linear(self.last(x.permute(0, 2, 3, 1)))  # (B, H, W, C)
        x = self.first(x + y.permute(0, 3, 1, 2))
        tokens = self.norm(self.tokens(x.flatten(2).mT))  # (B, N, C)
        self.flat(tokens.mT)  # (B, C, N)
        self.several((x, tokens))
        self.cat(torch.cat([x, x], 1))
        return self.attention(*[tokens.transpose(0, 1)] * 3)[0].mean(0)  # (N, B, C) inside


@pytest.mark.parametrize(
    ('address', 'host', 'shape'),
    [
        ('conv', 'b c h w', (2, 8, 8, 8)),
        ('last', 'b h w c', (2, 8, 8, 8)),
        ('linear', 'b h w c', (2, 8, 8, 8)),
        ('linear@in', 'b h w c', (2, 8, 8, 8)),
        ('first', 'b c h w', (2, 8, 8, 8)),
        ('tokens', 'b n c', (2, 64, 8)),
        ('flat', 'b c n', (2, 64, 8)),
        ('several[0]', 'b c h w', (2, 8, 8, 8)),
        ('several[1]', 'b n c', (2, 64, 8)),
        ('cat', 'b c h w', (2, 16, 8, 8)),
        ('attention[0]', 'n b c', (2, 64, 8)),
    ],
)
def test_a_tap_gives_a_map_or_tokens_whatever_the_order_of_its_axes(address, host, shape):
    net, image = Net().eval(), torch.randn(2, 3, 8, 8)
    raw = FeatureTaps(dict(tap=address))
    taps = traced(net, lambda: net(image[:1]), tap=address)
    with torch.no_grad(), raw.record(net) as before, taps.record(net) as after:
        net(image)
    assert taps.traces['tap'].known
    assert after['tap'].shape == shape
    letters = 'b c h w' if len(shape) == 4 else 'b n c'
    order = [host.split().index(letter) for letter in letters.split()]
    assert torch.equal(after['tap'], before['tap'].permute(order))
    assert taps.traces['tap'].shapes == [(1, *shape[1:])]


def test_a_deeper_map_with_as_many_numbers_does_not_tell_the_axes_of_an_earlier_one():
    """ResNet18 with dilations, at 512 x 1024: stage 3 has as many channels as stage 1 has columns."""
    layers = [Layer('layer1', 0, (1, 64, 128, 256), 1), Layer('layer3', 0, (1, 256, 64, 128), 1)]
    assert find_channels([(1, 64, 128, 256)], layers, marks=lambda layer: None) == 1


def test_what_is_put_in_a_taps_place_is_turned_back():
    net, image = Net().eval(), torch.randn(2, 3, 8, 8)
    taps = traced(net, lambda: net(image[:1]), last='last', first='first')
    with torch.no_grad():
        with taps.record(net) as plain:
            net(image)
        with taps.record(net, ['first']) as same, taps.substitute(net, 'last', plain['last'].clone()):
            net(image)
    assert torch.equal(same['first'], plain['first'])


def test_a_trace_that_marks_channels_leaves_no_nan():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Identity(), nn.BatchNorm2d(8)).train()
    traced(net, lambda: net(torch.randn(1, 3, 8, 8)), tap='1')
    assert all(b.isfinite().all() for b in net.buffers())
    assert all(not m._forward_hooks for m in net.modules())


BACKBONES = {
    # at 32 pixels all of the first stage's three axes are 8
    'ConvNeXt': (dict(arch=dict(depths=[1, 1], channels=[8, 16]), gap_before_final_norm=False), 8),
    'SwinTransformer': (
        dict(arch=dict(embed_dims=8, depths=[1, 1], num_heads=[1, 1]), window_size=4, img_size=32), 8,
    ),
    'VisionTransformer': (
        dict(arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=16), img_size=32, patch_size=8,
             out_type='featmap'), 16,
    ),
    'HorNet': (
        dict(arch=dict(base_dim=8, depths=[1, 1, 1, 1], orders=[2] * 4, dw_cfg=[dict(type='DW', kernel_size=3)] * 4),
             gap_before_final_norm=False), 8,
    ),
}  # fmt: skip


@pytest.mark.parametrize('kind', BACKBONES)
def test_backbones_that_work_with_the_channels_at_the_end(scope, kind):
    """Their outputs, and in between: all taps of one stage agree on the channels."""
    import mmpretrain.models

    scope('mmpretrain')
    arguments, channels = BACKBONES[kind]
    net = build_model(dict(type=kind, out_indices=(0, 1), **arguments))
    net.eval()
    image = torch.randn(1, 3, 32, 32)
    outer = nn.Sequential(net)
    taps = traced(outer, lambda: outer(image), a='0[0]', b='0[1]')
    given = net(image)
    for trace, output in zip(taps.traces.values(), given):
        assert trace.known
        assert trace.order is None
        assert trace.shapes == [tuple(output.shape)]
        assert kind_of(output) == 'map'
    assert taps.traces['a'].shapes[0][1] == channels


def test_a_convnext_block_works_on_maps_with_the_channels_last(scope):
    import mmpretrain.models

    scope('mmpretrain')
    net = build_model(dict(type='ConvNeXt', arch=dict(depths=[1, 1], channels=[8, 16])))
    net.eval()
    run = lambda: net(torch.randn(1, 3, 32, 32))  # noqa: E731
    orders = {
        'stages.0': None,
        'stages.0.0.depthwise_conv': None,
        'stages.0.0.pointwise_conv2': (0, 3, 1, 2),
        'stages.0.0.pointwise_conv1': (0, 3, 1, 2),
        'downsample_layers.1.0': None,
    }
    taps = traced(net, run, **{path.replace('.', '_'): path for path in orders})
    assert {path: taps.traces[path.replace('.', '_')].order for path in orders} == orders
    assert taps.traces['stages_0_0_pointwise_conv1'].shapes == [(1, 32, 8, 8)]


# ---- losses and connectors


def scores_or_maps(*shape):
    return torch.randn(shape, dtype=torch.float64)


def built_losses():
    """Every loss of pairs or lists that this package registers, with its fewest arguments."""
    needs = dict(
        AFDLoss=dict(channels=[3]),
        FGDLoss=dict(channels=[3]),
        ExploreLoss=dict(loss=dict(type='lckd_mm.ATLoss')),
        AdversarialLoss=dict(channels=[3], critic=dict(type='lckd_mm.ConvCritic')),
        VIDLoss=dict(channels=[3], student_channels=[3]),
        CRDLoss=dict(samples=4, channels=[3], student_channels=[3]),
        ReviewKDLoss=dict(channels=[3], student_channels=[3]),
    )
    kinds = [k for _, k in inspect.getmembers(losses, inspect.isclass) if issubclass(k, Loss) and k is not Loss]
    return {kind.__name__: kind(**needs.get(kind.__name__, {})) for kind in kinds if kind.__module__ != 'base'}


TAKEN = {name: loss.takes for name, loss in built_losses().items() if loss.takes}


@pytest.mark.parametrize('name', [name for name, takes in TAKEN.items() if {'tokens', 'map'} <= set(takes)])
def test_tokens_are_a_map_of_one_column(name):
    """No loss takes the tokens for the channels: (B, N, C) gives what (B, C, N, 1) gives."""
    loss = built_losses()[name].double().train()
    if 'channels' in inspect.signature(type(loss)).parameters:
        for parameter in loss.parameters():
            nn.init.normal_(parameter)
    student, teacher = ([scores_or_maps(2, 5, 3) for _ in range(2)] for _ in range(2))
    one = name in ('AFDLoss', 'VIDLoss', 'CRDLoss')  # built for one feature, of three channels
    if one:
        student, teacher = student[:1], teacher[:1]
    extras = {}
    if name == 'CRDLoss':
        extras['data_samples'] = [DataSample(metainfo=dict(sample_idx=i)) for i in range(2)]
        loss.eval()
    as_maps = [[x.mT[..., None] for x in of] for of in (student, teacher)]
    value = loss(student, teacher, **extras)
    if name == 'CRDLoss':
        loss.draws.zero_()
    torch.testing.assert_close(value, loss(*as_maps, **extras))
    if not one:
        swapped = [[x.mT.contiguous() for x in of] for of in (student, teacher)]
        assert (loss(student, teacher) - loss(*swapped)).abs() > 1e-4


@pytest.mark.parametrize('name', TAKEN)
def test_other_kinds_are_refused_in_a_sentence(name):
    loss = built_losses()[name]
    shapes = dict(vector=(2, 3), tokens=(2, 5, 3), map=(2, 3, 4, 4), queries=(6, 2, 5, 3, 1))
    extras = dict(data_samples=None) if 'data_samples' in loss.forward_arguments() else {}
    for kind, shape in shapes.items():
        if kind not in TAKEN[name]:
            with pytest.raises(ValueError, match=rf'{name}: expected .*, got shape {re.escape(str(shape))}'):
                loss([torch.zeros(shape)] * 2, [torch.zeros(shape)] * 2, **extras)


def test_linear_is_a_linear_layer_along_the_channels():
    linear = Linear(3, 5)
    for shape in ((2, 3), (2, 7, 3)):
        x = torch.randn(shape)
        assert torch.equal(linear(x, torch.zeros(1)), x @ linear[0].weight.T + linear[0].bias)
    with pytest.raises(ValueError, match=r"Linear: expected tokens .* or a vector .*; dict\(type='lckd_mm.ConvBN'"):
        linear(torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"ConvBN: expected a map .*; dict\(type='lckd_mm.Linear'\) takes tokens"):
        ConvBN(3, 5)(torch.zeros(2, 4, 3))


def test_a_chain_applies_its_connectors_in_order():
    conv, x, like = ConvBN(3, 5).eval(), torch.randn(2, 3, 4, 4), torch.zeros(2, 5, 6, 6)
    chain = Chain([conv, MatchSize()])
    assert torch.equal(chain(x, like), MatchSize()(conv(x), like))
    assert list(chain.state_dict()) == [f'0.{key}' for key in conv.state_dict()]


# ---- through a Distiller


def vit(width, **backbone):
    return dict(
        type='mmpretrain.ImageClassifier', data_preprocessor=dict(mean=[0.0] * 3, std=[1.0] * 3),
        backbone=dict(type='VisionTransformer', img_size=32, patch_size=8, **backbone,
                      arch=dict(embed_dims=width, num_layers=2, num_heads=4, feedforward_channels=32)),
        head=dict(type='VisionTransformerClsHead', num_classes=3, in_channels=width),
    )  # fmt: skip


def resnet(width, strides=(1, 2, 2, 2)):
    return dict(
        type='mmpretrain.ImageClassifier', data_preprocessor=dict(mean=[0.0] * 3, std=[1.0] * 3),
        backbone=dict(type='ResNet', depth=18, base_channels=width, stem_channels=8, strides=strides),
        neck=dict(type='GlobalAveragePooling'), head=dict(type='LinearClsHead', num_classes=3, in_channels=8 * width),
    )  # fmt: skip


@pytest.fixture
def distil(scope, tmp_path):
    """``distil(student, teacher, taps, term)``: a Distiller with this one term."""

    def build(student, teacher, taps, term, host='mmpretrain', size=32):
        scope(host)
        file = tmp_path / 'teacher.pth'
        torch.save(dict(state_dict=build_model(teacher, host).state_dict()), file)
        return MODELS.build(dict(
            type='lckd_mm.Distiller', student=student, teacher=dict(model=teacher, checkpoint=str(file)), taps=taps,
            terms=dict(loss_x=term), dry_run_size=size,
        ))  # fmt: skip

    return build


FITNETS = dict(loss=dict(type='lckd_mm.FitNetsLoss'), on='f')
ADVISED = {
    'maps of another width': (resnet(8), resnet(16), 'backbone.layer2', FITNETS, 'ConvBN'),
    'maps of another size': (resnet(8), resnet(8, (1, 1, 2, 2)), 'backbone.layer2', FITNETS, 'MatchSize'),
    'both': (resnet(8), resnet(16, (1, 1, 2, 2)), 'backbone.layer2', FITNETS, 'ConvBN MatchSize'),
    'tokens': (vit(24), vit(32), 'backbone.layers.1', FITNETS, 'Linear'),
    'vectors': (vit(24), vit(32), 'backbone[0]', FITNETS, 'Linear'),
    'FSP': (
        resnet(8), resnet(16), dict(f='backbone.layer1', g='backbone.layer2'),
        dict(loss=dict(type='lckd_mm.FSPLoss'), on=['f', 'g']), 'ConvBN',
    ),
    'attention': (
        resnet(8), resnet(16, (1, 1, 2, 2)), 'backbone.layer2', dict(FITNETS, loss=dict(type='lckd_mm.ATLoss')),
        'MatchSize',
    ),
    'OFD': (
        resnet(8), resnet(16), 'backbone.layer2@preact', dict(loss=dict(type='lckd_mm.OFDLoss'), on='f'), 'ConvBN',
    ),
}  # fmt: skip


@pytest.mark.parametrize('case', ADVISED)
def test_what_the_sentence_advises_builds(distil, case):
    student, teacher, taps, term, names = ADVISED[case]
    taps = taps if isinstance(taps, dict) else dict(f=taps)
    with pytest.raises(ValueError, match=r"term 'loss_x': .*connector=") as caught:
        distil(student, teacher, taps, term)
    advice = re.search(r'connector=(\[.*?\]|dict\(.*?\))', str(caught.value))[1]
    assert re.findall(r'lckd_mm\.(\w+)', advice) == names.split()
    built = distil(student, teacher, taps, dict(term, connector=eval(advice)))
    assert isinstance(built.terms['loss_x'].connectors[0], Connector)


def test_a_connector_of_another_kind_names_the_right_one(distil):
    with pytest.raises(ValueError, match=r"ConvBN: expected a map .*; dict\(type='lckd_mm.Linear'\) takes tokens"):
        distil(vit(24), vit(32), dict(f='backbone.layers.1'), dict(FITNETS, connector=dict(type='lckd_mm.ConvBN')))


def test_tokens_train_with_a_linear_connector_of_the_right_widths(distil):
    model = distil(vit(24), vit(32), dict(f='backbone.layers.1'), dict(FITNETS, connector=dict(type='lckd_mm.Linear')))
    model.init_weights()
    model.train()
    (linear,) = model.terms['loss_x'].connectors
    assert (linear[0].in_features, linear[0].out_features) == (24, 32)
    samples = fabricate_samples(model.student, 2, (32, 32))
    model(torch.randn(2, 3, 32, 32), samples, mode='loss')['loss_x'].backward()
    assert linear[0].weight.grad.abs().max() > 0


CHAIN = [dict(type='lckd_mm.ConvBN'), dict(type='lckd_mm.MatchSize')]


def test_a_chain_is_borrowed_and_stored_as_one_connector(distil):
    model = distil(resnet(8), resnet(16, (1, 1, 2, 2)), dict(f='backbone.layer2'), dict(FITNETS, connector=CHAIN))
    state = model.distillation_state()
    assert next(key for key in state if 'connectors' in key) == 'loss_x.connectors.0.0.0.weight'
    with torch.no_grad():
        model.terms['loss_x'].connectors[0][0][0].weight.fill_(1.0)
    changed = {key: value.clone() for key, value in model.distillation_state().items()}
    model.load_distillation_state(state)
    model.load_distillation_state(changed)
    assert (model.terms['loss_x'].connectors[0][0][0].weight == 1).all()


def test_the_second_of_a_chain_gets_what_the_first_gives(distil):
    part = [dict(type='lckd_mm.ChannelPart'), dict(type='lckd_mm.ConvBN')]
    model = distil(resnet(8), resnet(16), dict(f='backbone.layer2'), dict(FITNETS, connector=part))
    conv = model.terms['loss_x'].connectors[0][1][0]
    assert (conv.in_channels, conv.out_channels) == (8, 32)


def test_a_margin_in_a_chain_is_bound_and_fitted(distil):
    term = dict(loss=dict(type='lckd_mm.OFDLoss'), on='f', connector=dict(type='lckd_mm.ConvBN'))
    nets = resnet(8), resnet(16, (1, 1, 2, 2)), dict(f='backbone.layer2@preact')
    size = dict(type='lckd_mm.MatchSize')
    model = distil(*nets, dict(term, teacher_connector=[dict(type='lckd_mm.MarginReLU'), size]))
    model.init_weights()
    assert model.terms['loss_x'].teacher_connectors[0][0].known
    by_data = dict(type='lckd_mm.MarginReLU', margin='data', batches=1)
    model = distil(*nets, dict(term, teacher_connector=[by_data, size]))
    ((_, chain, _),) = model.terms['loss_x'].waiting()
    chain.observe(torch.randn(2, 32, 4, 4))
    chain.finish_fitting()
    assert model.terms['loss_x'].waiting() == []
    with pytest.raises(ValueError, match="'loss_x': teacher_connector: write MarginReLU before MatchSize"):
        distil(*nets, dict(term, teacher_connector=[size, by_data]))
    with pytest.raises(ValueError, match='takes one that is fitted'):
        distil(*nets, dict(term, teacher_connector=[by_data, dict(type='lckd_mm.AutoEncoder')]))
    # Behind a ReLU it turns out only when it is bound that the margin is taken from images.
    nets, auto = (*nets[:2], dict(f='backbone.layer2')), dict(type='lckd_mm.MarginReLU')
    with pytest.raises(ValueError, match="'loss_x', tap 'f': write MarginReLU before MatchSize"):
        distil(*nets, dict(term, teacher_connector=[size, auto]))
    with pytest.raises(ValueError, match=r"'loss_x', tap 'f': write MarginReLU before ConvBN: .* its weights"):
        distil(*nets, dict(term, teacher_connector=[dict(type='lckd_mm.ConvBN'), auto]))


def test_maps_with_the_channels_last_take_the_connectors_of_maps(distil):
    def convnext(width):
        net = resnet(8)
        net['backbone'] = dict(type='ConvNeXt', arch=dict(depths=[1, 1, 1, 1], channels=[width] * 4))
        net['head']['in_channels'] = width
        return net | dict(neck=None)

    tap = 'backbone.stages.0.0.pointwise_conv1'
    term = dict(loss=dict(type='lckd_mm.CWDLoss'), on='f', connector=dict(type='lckd_mm.ConvBN'))
    model = distil(convnext(8), convnext(16), dict(f=tap), term, size=64)
    assert model.student_taps.traces['f'].shapes == [(1, 32, 16, 16)]
    assert model.terms['loss_x'].connectors[0][0].weight.shape == (64, 32, 1, 1)


def swin(width):
    net = resnet(8)
    arch = dict(embed_dims=width, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1])
    net['backbone'] = dict(type='SwinTransformer', arch=arch, window_size=2, img_size=64)
    net['head']['in_channels'] = 8 * width
    return net


def test_unknown_axes_are_refused_where_they_matter(distil):
    """Attention weights (windows, heads, N, N): none of their axes has the width of the layer that computes them."""
    taps = dict(f='backbone.stages.0.blocks.0.attn.w_msa.attn_drop')
    nets = swin(8), swin(8), taps
    assert not distil(*nets, FITNETS, size=64).student_taps.traces['f'].known
    for term in (
        dict(FITNETS, loss=dict(type='lckd_mm.CWDLoss')),
        dict(FITNETS, connector=dict(type='lckd_mm.ConvBN')),
    ):
        with pytest.raises(
            ValueError, match=r'it is not known which axis holds the channels, which (CWDLoss|ConvBN) need'
        ):
            distil(*nets, term, size=64)


# ---- rows that each net chooses for itself


ROI = {
    'roi_head.bbox_head.fc_cls': 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'roi_head.bbox_head.shared_fcs.0@in': 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'roi_head.bbox_head.1.fc_cls': 'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py',
    'roi_head.mask_head.conv_logits': 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'roi_head.bbox_roi_extractor': 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
}


@pytest.mark.parametrize('address', ROI)
def test_regions_of_two_nets_are_refused_and_what_the_sentence_names_builds(distil, address):
    import mmdet.models

    net = rcnn(ROI[address])
    for loss in ('KDLoss', 'FitNetsLoss', 'RKDLoss'):
        with pytest.raises(
            ValueError, match=r'gives a row for each region that this net proposes.*; compare'
        ) as caught:
            distil(net, net, dict(f=address), dict(loss=dict(type=f'lckd_mm.{loss}'), on='f'), 'mmdet', 64)
    advice = str(caught.value).split('; compare ')[1]
    named = re.findall(r"\('?(?:such as )?'?([\w.\[\]#*]+)'\)", advice)
    assert named == ['neck[0]', 'rpn_head.rpn_cls#*']
    for tap in named:
        distil(net, net, dict(f=tap), FITNETS, 'mmdet', 64)


def test_queries_are_refused_and_the_encoder_is_not(distil):
    import mmdet.models

    net = load_config('mmdet::detr/detr_r50_8xb2-150e_coco.py').model.to_dict()
    net['backbone'].update(depth=18, base_channels=8, init_cfg=None)
    net['neck'].update(in_channels=[64], out_channels=16)
    layer = dict(self_attn_cfg=dict(embed_dims=16, num_heads=2, batch_first=True),
                 ffn_cfg=dict(embed_dims=16, feedforward_channels=16, num_fcs=2))  # fmt: skip
    net['encoder'].update(num_layers=1, layer_cfg=layer)
    net['decoder'].update(num_layers=2, layer_cfg=dict(layer, cross_attn_cfg=layer['self_attn_cfg']))
    net['positional_encoding'].update(num_feats=8)
    net['bbox_head'].update(embed_dims=16)
    for tap in ('bbox_head.fc_cls', 'decoder.layers.0', 'decoder.layers.1.norms.0@in', 'bbox_head.reg_ffn'):
        with pytest.raises(ValueError, match=r'gives a row for each query of this net.*; compare the backbone'):
            distil(net, net, dict(f=tap), dict(loss=dict(type='lckd_mm.KDLoss'), on='f'), 'mmdet', 64)
    model = distil(net, net, dict(f='encoder.layers.0'), FITNETS, 'mmdet', 64)
    assert model.student_taps.traces['f'].shapes == [(1, 4, 16)]


@pytest.mark.parametrize(
    ('name', 'part', 'rows'),
    [
        ('mmseg::mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py', 'decode_head', 'query'),
        ('mmseg::maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512.py', 'decode_head', 'query'),
        ('mmseg::point_rend/pointrend_r50_4xb2-80k_cityscapes-512x1024.py', 'decode_head.1', 'point'),
        ('mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py', 'panoptic_head', 'query'),
        ('mmdet::htc/htc_r50_fpn_1x_coco.py', 'roi_head', 'region'),
        ('mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py', 'roi_head', 'region'),
    ],
)
def test_the_heads_of_the_hosts_that_choose_rows(name, part, rows):
    config = load_config(name)
    head = config.model.get(part.partition('.')[0])
    host = config.default_scope
    built = nn.ModuleDict({part.partition('.')[0]: nn.ModuleList(build_model(h, host) for h in head)
                           if isinstance(head, list) else build_model(head, host)})  # fmt: skip
    found = row_choosers(built)
    assert {chooser.reach for chooser in found} == {part}
    assert all(chooser.rows.startswith(rows) for chooser in found)
