import pytest
import torch
from mmengine.registry import MODELS as MMENGINE_MODELS
from run_helpers import ROOT
from torch.nn import functional as F

from lckd_mm.backbones import MobileNetV1
from lckd_mm.hosts import build_model
from lckd_mm.taps import FeatureTaps
from lckd_mm.taps.listing import list_taps

TAPS = {f'block{i}': f'backbone.block{i}.bn2' for i in (3, 5, 11, 13)}


def classifier(width_multiplier=1.0, classes=1000, stem='imagenet'):
    return dict(
        type='ImageClassifier',
        backbone=dict(type='lckd_mm.MobileNetV1', stem=stem, width_multiplier=width_multiplier),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead',
            num_classes=classes,
            in_channels=int(1024 * width_multiplier),
            loss=dict(type='CrossEntropyLoss'),
        ),
    )


def millions(cfg):
    return sum(p.numel() for p in build_model(cfg, 'mmpretrain').parameters()) / 1e6


def test_the_parameter_count_is_that_of_ofds_table():
    # OFD's table of ImageNet pairs, classifier included.
    assert round(millions(classifier()), 2) == 4.23


@pytest.mark.parametrize(('width_multiplier', 'paper'), [(1.0, 4.2), (0.75, 2.6), (0.5, 1.3), (0.25, 0.5)])
def test_parameter_counts_of_thinner_nets_are_the_papers(width_multiplier, paper):
    # Howard et al., table 6.
    assert round(millions(classifier(width_multiplier)), 1) == paper


@pytest.mark.parametrize(('stem', 'side', 'sides'), [('imagenet', 64, (16, 8, 4, 2)), ('cifar', 32, (32, 16, 8, 4))])
def test_features_before_a_relu_can_be_tapped_by_address(stem, side, sides):
    model = build_model(classifier(stem=stem), 'mmpretrain').eval()
    x = torch.randn(2, 3, side, side)
    taps = FeatureTaps(TAPS)
    with torch.no_grad():
        taps.trace(model, lambda: model(x))
        with taps.record(model) as features:
            (out,) = model.backbone(x)
    shapes = [(2, c, s, s) for c, s in zip((128, 256, 512, 1024), sides)]
    assert [tuple(f.shape) for f in features.values()] == shapes
    assert all((f < 0).any() for f in features.values())
    assert torch.equal(out, features['block13'].relu())
    assert out.shape[1] == model.backbone.out_channels == 1024


def test_block_addresses_end_in_an_activation():
    model = build_model(classifier(0.25, stem='cifar'), 'mmpretrain').eval()
    x = torch.randn(1, 3, 32, 32)
    taps = FeatureTaps({'bn': 'backbone.block5.bn2', 'preact': 'backbone.block5@preact'})
    taps.trace(model, lambda: model(x))
    with taps.record(model) as features:
        model(x)
    assert torch.equal(features['bn'], features['preact'])


def test_nothing_is_overwritten_after_it_was_an_output():
    net = MobileNetV1(stem='cifar', width_multiplier=0.25)
    assert not any(getattr(module, 'inplace', False) for module in net.modules())  # list_taps switches them off
    rows = list_taps(net, lambda: net(torch.randn(2, 3, 32, 32)))
    assert rows and not any('overwritten' in row.note for row in rows)


def test_a_block_is_a_depthwise_then_a_pointwise_convolution():
    block = MobileNetV1().block2.eval()
    for norm in (block.bn1, block.bn2):
        torch.nn.init.normal_(norm.running_mean)
        torch.nn.init.normal_(norm.bias)
    x = torch.randn(1, 64, 8, 8)
    # Channel by channel, with a plain convolution.
    planes = [F.conv2d(x[:, [c]], block.depthwise.weight[[c]], stride=2, padding=1) for c in range(64)]
    out = block.bn1(torch.cat(planes, 1)).relu()
    out = torch.einsum('oc,bchw->bohw', block.pointwise.weight[:, :, 0, 0], out)
    torch.testing.assert_close(block(x), block.bn2(out).relu())


def test_a_thinner_net_is_thinner_everywhere():
    full, half = MobileNetV1(), MobileNetV1(width_multiplier=0.5)
    full, half = ([m.num_features for m in net.modules() if hasattr(m, 'num_features')] for net in (full, half))
    assert len(full) == 27
    assert half == [n // 2 for n in full]


def test_convolutions_begin_he_normal_by_fan_out():
    net = MobileNetV1()
    net.init_weights()
    assert net.block12.pointwise.weight.std().item() == pytest.approx((2 / 1024) ** 0.5, rel=0.02)


def test_several_outputs_are_those_of_the_blocks_and_change_no_key():
    torch.manual_seed(0)
    one, three = MobileNetV1(width_multiplier=0.25).eval(), MobileNetV1(width_multiplier=0.25, out_indices=(5, 11, 13))
    three.load_state_dict(one.state_dict(), strict=True)
    assert list(three.state_dict()) == list(one.state_dict())
    outputs = three.eval()(x := torch.randn(1, 3, 64, 64))
    assert [tuple(y.shape) for y in outputs] == [(1, 64, 8, 8), (1, 128, 4, 4), (1, 256, 2, 2)]
    assert torch.equal(outputs[-1], one(x)[0])
    y = one.relu1(one.bn1(one.conv1(x)))
    for i in range(1, 6):
        y = getattr(one, f'block{i}')(y)
    assert torch.equal(outputs[0], y)


@pytest.mark.parametrize('out_indices', [(), (0, 5), (5, 14), (11, 5), (5, 5)])
def test_numbers_that_are_no_blocks_in_order_raise(out_indices):
    with pytest.raises(ValueError, match='out_indices'):
        MobileNetV1(out_indices=out_indices)


def test_another_stem_raises():
    with pytest.raises(ValueError, match="unknown stem 'voc'"):
        MobileNetV1(stem='voc')


@pytest.mark.parametrize('width_multiplier', [0.0, 0.01, -1.0])
def test_a_width_without_channels_raises(width_multiplier):
    with pytest.raises(ValueError, match=f'width_multiplier.* got {width_multiplier}'):
        MobileNetV1(width_multiplier=width_multiplier)


def test_it_is_registered_for_any_host():
    assert MMENGINE_MODELS.get('lckd_mm.MobileNetV1') is MobileNetV1
    assert (ROOT / 'lckd_mm/backbones/mobilenet_v1.py').is_file()
