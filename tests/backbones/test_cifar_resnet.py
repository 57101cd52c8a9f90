import pytest
import torch
from mmengine.registry import MODELS as MMENGINE_MODELS
from run_helpers import ROOT
from torch.nn import functional as F

from lckd_mm.backbones import CifarResNet
from lckd_mm.hosts import build_model
from lckd_mm.taps import FeatureTaps
from lckd_mm.taps.listing import list_taps


def classifier(depth, classes=100, **backbone):
    return dict(
        type='ImageClassifier',
        backbone=dict(type='lckd_mm.CifarResNet', depth=depth, **backbone),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=classes, in_channels=64, loss=dict(type='CrossEntropyLoss')),
    )


def count(cfg):
    return sum(p.numel() for p in build_model(cfg, 'mmpretrain').parameters())


def test_the_parameter_count_is_that_of_ofds_table():
    # OFD's table of CIFAR-100 pairs, classifier included.
    assert round(count(classifier(56)) / 1e6, 2) == 0.86


@pytest.mark.parametrize(('depth', 'millions'), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)])
def test_parameter_counts_of_option_a_are_the_papers(depth, millions):
    # He et al., table 6: CIFAR-10, classifier included.
    assert round(count(classifier(depth, classes=10, shortcut='A')) / 1e6, 2) == millions


def test_parameter_count_of_110_layers():
    # The paper's table has one decimal.
    assert round(count(classifier(110, classes=10, shortcut='A')) / 1e6, 1) == 1.7


def test_option_b_adds_two_projections_and_their_norms():
    assert count(classifier(20)) - count(classifier(20, shortcut='A')) == 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64


@pytest.mark.parametrize(
    'addresses',
    [
        {f'group{i}': f'backbone.layer{i}.1.sum' for i in (1, 2, 3)},
        {f'group{i}': f'backbone.layer{i}@preact' for i in (1, 2, 3)},
    ],
    ids=['sum', 'preact'],
)
@pytest.mark.parametrize('shortcut', ['A', 'B'])
def test_features_before_a_relu_can_be_tapped_by_address(shortcut, addresses):
    model = build_model(classifier(14, shortcut=shortcut), 'mmpretrain').eval()
    x = torch.randn(2, 3, 32, 32)
    taps = FeatureTaps(addresses)
    with torch.no_grad():
        taps.trace(model, lambda: model(x))
        with taps.record(model) as features:
            (out,) = model.backbone(x)
    assert [tuple(f.shape) for f in features.values()] == [(2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]
    assert all((f < 0).any() for f in features.values())
    assert torch.equal(out, features['group3'].relu())
    assert out.shape[1] == model.backbone.out_channels


def test_nothing_is_overwritten_after_it_was_an_output():
    net = CifarResNet(14)
    assert not any(getattr(module, 'inplace', False) for module in net.modules())  # list_taps switches them off
    rows = list_taps(net, lambda: net(torch.randn(2, 3, 32, 32)))
    assert rows and not any('overwritten' in row.note for row in rows)


def silenced(block):
    torch.nn.init.zeros_(block.bn2.weight)
    return block.eval()


def test_a_block_of_the_same_shape_carries_its_input_to_the_last_relu():
    block = silenced(CifarResNet(14).layer2[1])
    x = torch.randn(1, 32, 8, 8)
    assert torch.equal(block(x), x.relu())


def test_option_a_carries_every_second_pixel_and_channels_of_zeros():
    block = silenced(CifarResNet(14, shortcut='A').layer2[0])
    x = torch.randn(1, 16, 7, 7)
    out = block(x)
    assert tuple(out.shape) == (1, 32, 4, 4)
    assert torch.equal(out[0, :16, 1, 3], x[0, :, 2, 6].relu())
    assert not out[:, 16:].any()


def test_option_b_carries_a_normalized_projection():
    block = silenced(CifarResNet(14).layer2[0])
    conv, norm = block.shortcut
    torch.nn.init.normal_(norm.running_mean)
    x = torch.randn(1, 16, 8, 8)
    expected = norm(F.conv2d(x, conv.weight, stride=2)).relu()
    torch.testing.assert_close(block(x), expected)


def test_a_block_is_two_normalized_convolutions():
    block = CifarResNet(14).layer1[1].eval()
    for norm in (block.bn1, block.bn2):
        torch.nn.init.normal_(norm.running_mean)
        torch.nn.init.normal_(norm.bias)
    x = torch.randn(1, 16, 8, 8)
    out = block.bn1(F.conv2d(x, block.conv1.weight, padding=1)).relu()
    out = block.bn2(F.conv2d(out, block.conv2.weight, padding=1))
    torch.testing.assert_close(block(x), (out + x).relu())


def test_convolutions_begin_he_normal_by_fan_out():
    net = CifarResNet(56)
    net.init_weights()
    std = net.layer3[0].conv1.weight.std().item()
    assert std == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.03)


@pytest.mark.parametrize('depth', [2, 7, 18, 55])
def test_a_depth_that_no_group_divides_raises(depth):
    with pytest.raises(ValueError, match=rf'6 n \+ 2.*got {depth}'):
        CifarResNet(depth)


def test_another_shortcut_raises():
    with pytest.raises(ValueError, match="'C'"):
        CifarResNet(20, shortcut='C')


def test_it_is_registered_for_any_host():
    assert MMENGINE_MODELS.get('lckd_mm.CifarResNet') is CifarResNet
    assert (ROOT / 'lckd_mm/backbones/cifar_resnet.py').is_file()


def test_widths_of_its_own():
    model = CifarResNet(32, widths=(32, 64, 128, 256))
    assert [model.get_submodule(f'layer{i}')[4].conv2.weight.shape[0] for i in (1, 2, 3)] == [64, 128, 256]
    assert model(torch.zeros(1, 3, 32, 32))[0].shape == (1, 256, 8, 8)
    # The published ResNet32x4, without its linear layer of 100 classes: 7,433,860 in all.
    assert sum(p.numel() for p in model.parameters()) + 256 * 100 + 100 == 7433860
    for widths in ((16, 16), (16,) * 5):
        with pytest.raises(ValueError, match='four'):
            CifarResNet(8, widths=widths)
