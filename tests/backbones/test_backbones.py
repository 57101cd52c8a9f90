"""What all backbones have in common: sizes of the papers, features before a ReLU, initial weights, bad arguments."""

import pytest
import torch
from mmengine.registry import MODELS

from lckd_mm.backbones import CifarResNet, MobileNetV1, PyramidNet, WideResNet
from lckd_mm.hosts import build_model
from lckd_mm.taps import FeatureTaps
from lckd_mm.taps.listing import list_taps


def classifier(name, classes=100, **arguments):
    backbone = dict(type=f'lckd_mm.{name}', **arguments)
    return dict(
        type='ImageClassifier',
        backbone=backbone,
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead',
            num_classes=classes,
            in_channels=MODELS.build(backbone).out_channels,
            loss=dict(type='CrossEntropyLoss'),
        ),
    )


@pytest.mark.parametrize(
    ('name', 'arguments', 'millions', 'decimals'),
    [
        # OFD's tables of pairs on CIFAR-100 and ImageNet, classifier included.
        ('WideResNet', dict(depth=28, widen_factor=4), 5.87, 2),
        ('WideResNet', dict(depth=16, widen_factor=4), 2.77, 2),
        ('WideResNet', dict(depth=28, widen_factor=2), 1.48, 2),
        ('WideResNet', dict(depth=16, widen_factor=2), 0.70, 2),
        ('CifarResNet', dict(depth=56), 0.86, 2),
        ('PyramidNet', dict(depth=200, alpha=240, bottleneck=True), 26.84, 2),
        ('PyramidNet', dict(depth=110, alpha=84), 3.91, 2),
        ('MobileNetV1', dict(classes=1000), 4.23, 2),
        # He et al., table 6: CIFAR-10; the last has one decimal there.
        ('CifarResNet', dict(depth=20, shortcut='A', classes=10), 0.27, 2),
        ('CifarResNet', dict(depth=32, shortcut='A', classes=10), 0.46, 2),
        ('CifarResNet', dict(depth=44, shortcut='A', classes=10), 0.66, 2),
        ('CifarResNet', dict(depth=56, shortcut='A', classes=10), 0.85, 2),
        ('CifarResNet', dict(depth=110, shortcut='A', classes=10), 1.7, 1),
        # Howard et al., table 6.
        ('MobileNetV1', dict(width_multiplier=0.75, classes=1000), 2.6, 1),
        ('MobileNetV1', dict(width_multiplier=0.5, classes=1000), 1.3, 1),
        ('MobileNetV1', dict(width_multiplier=0.25, classes=1000), 0.5, 1),
        # The published ResNet32x4: 7,433,860.
        ('CifarResNet', dict(depth=32, widths=(32, 64, 128, 256)), 7.43386, 6),
    ],
    ids=str,
)
def test_parameter_counts_are_the_papers(name, arguments, millions, decimals):
    model = build_model(classifier(name, **arguments), 'mmpretrain')
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, decimals) == millions


def taps(*paths):
    return {f'group{i}': f'backbone.{path}' for i, path in enumerate(paths, 1)}


PREACT = taps('layer1@preact', 'layer2@preact', 'layer3@preact')
SUMS = taps('layer1.1.sum', 'layer2.1.sum', 'layer3.1.sum')
BLOCKS = taps('block3.bn2', 'block5.bn2', 'block11.bn2', 'block13.bn2')
RESNET = [(2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]


@pytest.mark.parametrize(
    ('name', 'arguments', 'side', 'addresses', 'shapes'),
    [
        (
            'WideResNet',
            dict(depth=16, widen_factor=2),
            32,
            taps('block2.0.bn1', 'block3.0.bn1', 'bn1'),
            [(2, 32, 32, 32), (2, 64, 16, 16), (2, 128, 8, 8)],
        ),
        *(
            ('CifarResNet', dict(depth=14, shortcut=shortcut), 32, addresses, RESNET)
            for shortcut in 'AB'
            for addresses in (SUMS, PREACT)
        ),
        (
            'PyramidNet',
            dict(depth=14, alpha=12),
            32,
            taps('layer2.0.bn1', 'layer3.0.bn1', 'bn_final'),
            [(2, 20, 32, 32), (2, 24, 16, 16), (2, 28, 8, 8)],
        ),
        # Block k = 3 and 5 of 6, after their first 1x1 convolution and so before the map is halved: 16 + 12 k / 6.
        (
            'PyramidNet',
            dict(depth=20, alpha=12, bottleneck=True),
            32,
            taps('layer2.0.bn2', 'layer3.0.bn2', 'bn_final'),
            [(2, 22, 32, 32), (2, 26, 16, 16), (2, 112, 8, 8)],
        ),
        *(
            ('MobileNetV1', dict(stem=stem), side, BLOCKS, [(2, 128 << i, s >> i, s >> i) for i in range(4)])
            for stem, side, s in (('imagenet', 64, 16), ('cifar', 32, 32))
        ),
    ],
)
def test_features_before_a_relu_can_be_tapped_by_address(name, arguments, side, addresses, shapes):
    model = build_model(classifier(name, **arguments), 'mmpretrain').eval()
    x = torch.randn(2, 3, side, side)
    taps = FeatureTaps(addresses)
    with torch.no_grad():
        taps.trace(model, lambda: model(x))
        with taps.record(model) as features:
            (out,) = model.backbone(x)
    assert [tuple(f.shape) for f in features.values()] == shapes
    assert all((f < 0).any() for f in features.values())
    assert torch.equal(out, list(features.values())[-1].relu())
    assert out.shape[1] == model.backbone.out_channels


@pytest.mark.parametrize(
    'net',
    [
        CifarResNet(14),
        PyramidNet(20, 12),
        PyramidNet(20, 12, bottleneck=True),
        MobileNetV1(stem='cifar', width_multiplier=0.25),
        WideResNet(10),
    ],
    ids=lambda net: type(net).__name__,
)
def test_nothing_is_overwritten_after_it_was_an_output(net):
    assert not any(getattr(module, 'inplace', False) for module in net.modules())  # list_taps switches them off
    rows, _ = list_taps(net, lambda _: net(torch.randn(2, 3, 32, 32)))
    assert rows and not any('overwritten' in row.note for row in rows)


@pytest.mark.parametrize(
    ('net', 'path', 'fan_out'),
    [
        (CifarResNet(56), 'layer3.0.conv1', 9 * 64),
        (PyramidNet(11, 240, bottleneck=True), 'layer3.0.conv3', 1024),
        (MobileNetV1(), 'block12.pointwise', 1024),
        (WideResNet(28, 4), 'block3.0.conv2', 9 * 256),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else None,
)
def test_convolutions_begin_he_normal_by_fan_out(net, path, fan_out):
    torch.manual_seed(0)
    net.init_weights()
    assert net.get_submodule(path).weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.03)


@pytest.mark.parametrize(
    ('kind', 'arguments', 'name'),
    [
        *((CifarResNet, dict(depth=depth), f'depth .* {depth}') for depth in (2, 7, 18)),
        (CifarResNet, dict(depth=20, shortcut='C'), "'C'"),
        (CifarResNet, dict(depth=8, widths=(16, 16)), 'widths'),
        (CifarResNet, dict(depth=8, widths=(0, 1, 1, 1)), 'widths'),
        (CifarResNet, dict(depth=8, widths=16), 'widths'),
        *((WideResNet, dict(depth=depth), 'depth') for depth in (4, 5, 18)),
        *((PyramidNet, dict(depth=depth, alpha=84), f'depth .* {depth}') for depth in (2, 9, 109)),
        *((PyramidNet, dict(depth=depth, alpha=84, bottleneck=True), f'depth .* {depth}') for depth in (8, 44)),
        (PyramidNet, dict(depth=20, alpha=-3), 'alpha.* -3'),
        *((MobileNetV1, dict(out_indices=i), 'out_indices') for i in ((), (0, 5), (5, 14), (11, 5), (5, 5))),
        (MobileNetV1, dict(stem='voc'), "'voc'"),
        *((MobileNetV1, dict(width_multiplier=width), f'{width}') for width in (0.0, 0.01, -1.0)),
    ],
)
def test_bad_arguments_raise(kind, arguments, name):
    with pytest.raises(ValueError, match=name):
        kind(**arguments)
