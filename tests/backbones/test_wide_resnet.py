import pytest
import torch
from mmengine.registry import MODELS as MMENGINE_MODELS
from run_helpers import ROOT

from lckd_mm.backbones import WideResNet
from lckd_mm.hosts import build_model
from lckd_mm.taps import FeatureTaps

TAPS = {'group1': 'backbone.block2.0.bn1', 'group2': 'backbone.block3.0.bn1', 'group3': 'backbone.bn1'}


def classifier(depth, widen_factor, classes=100):
    return dict(
        type='ImageClassifier',
        backbone=dict(type='lckd_mm.WideResNet', depth=depth, widen_factor=widen_factor),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead',
            num_classes=classes,
            in_channels=64 * widen_factor,
            loss=dict(type='CrossEntropyLoss'),
        ),
    )


@pytest.mark.parametrize(
    ('depth', 'widen_factor', 'millions'), [(28, 4, 5.87), (16, 4, 2.77), (28, 2, 1.48), (16, 2, 0.70)]
)
def test_parameter_counts_are_the_papers(depth, widen_factor, millions):
    # OFD's table of CIFAR-100 pairs, classifier included.
    model = build_model(classifier(depth, widen_factor), 'mmpretrain')
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions


def test_features_before_a_relu_can_be_tapped_by_address():
    model = build_model(classifier(16, 2), 'mmpretrain').eval()
    x = torch.randn(2, 3, 32, 32)
    taps = FeatureTaps(TAPS)
    with torch.no_grad():
        taps.trace(model, lambda: model(x))
        with taps.record(model) as features:
            (out,) = model.backbone(x)
    assert [tuple(f.shape) for f in features.values()] == [(2, 32, 32, 32), (2, 64, 16, 16), (2, 128, 8, 8)]
    assert all((f < 0).any() for f in features.values())
    assert torch.equal(out, features['group3'].relu())


def test_a_block_with_the_same_width_carries_its_input_untouched():
    block = WideResNet(16).block1[1].eval()
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(1, 16, 8, 8)
    assert torch.equal(block(x), x)


def test_the_shortcut_of_a_wider_block_starts_from_the_activated_input():
    block = WideResNet(16, 2).block2[0].eval()
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(1, 32, 8, 8)
    expected = torch.nn.functional.conv2d(block.bn1(x).relu(), block.shortcut.weight, stride=2)
    torch.testing.assert_close(block(x), expected)


def test_convolutions_begin_he_normal_by_fan_out():
    net = WideResNet(28, 4)
    net.init_weights()
    std = net.block3[0].conv2.weight.std().item()
    assert std == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)


@pytest.mark.parametrize('depth', [4, 5, 18, 27])
def test_a_depth_that_no_group_divides_raises(depth):
    with pytest.raises(ValueError, match=rf'6 n \+ 4.*got {depth}'):
        WideResNet(depth)


def test_it_is_registered_for_any_host():
    assert MMENGINE_MODELS.get('lckd_mm.WideResNet') is WideResNet
    assert (ROOT / 'lckd_mm/backbones/wide_resnet.py').is_file()
