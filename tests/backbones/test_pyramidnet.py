import pytest
import torch
from mmengine.registry import MODELS as MMENGINE_MODELS
from run_helpers import ROOT
from torch.nn import functional as F

from lckd_mm.backbones import PyramidNet
from lckd_mm.hosts import build_model
from lckd_mm.taps import FeatureTaps
from lckd_mm.taps.listing import list_taps

BASIC = {'group1': 'backbone.layer2.0.bn1', 'group2': 'backbone.layer3.0.bn1', 'group3': 'backbone.bn_final'}
BOTTLENECK = {**BASIC, 'group1': 'backbone.layer2.0.bn2', 'group2': 'backbone.layer3.0.bn2'}


def classifier(depth, alpha, bottleneck=False, classes=100):
    return dict(
        type='ImageClassifier',
        backbone=dict(type='lckd_mm.PyramidNet', depth=depth, alpha=alpha, bottleneck=bottleneck),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead',
            num_classes=classes,
            in_channels=(16 + alpha) * (4 if bottleneck else 1),
            loss=dict(type='CrossEntropyLoss'),
        ),
    )


@pytest.mark.parametrize(
    ('depth', 'alpha', 'bottleneck', 'millions'), [(200, 240, True, 26.84), (110, 84, False, 3.91)]
)
def test_parameter_counts_are_the_papers(depth, alpha, bottleneck, millions):
    # OFD's table of CIFAR-100 pairs, classifier included.
    model = build_model(classifier(depth, alpha, bottleneck), 'mmpretrain')
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions


def test_widths_grow_from_block_to_block_to_the_nearest_channel():
    net = PyramidNet(20, 10)
    widths = [block.conv2.out_channels for group in (net.layer1, net.layer2, net.layer3) for block in group]
    # 16 + 10 k / 9: 17.1, 18.2, 19.3, 20.4, 21.6, 22.7, 23.8, 24.9, 26.
    assert widths == [17, 18, 19, 20, 22, 23, 24, 25, 26]
    assert net.out_channels == 26


def test_a_bottleneck_ends_four_times_as_wide():
    net = PyramidNet(11, 12, bottleneck=True)
    blocks = [net.layer1[0], net.layer2[0], net.layer3[0]]
    assert [tuple(b.conv1.weight.shape[:2]) for b in blocks] == [(20, 16), (24, 80), (28, 96)]
    assert [tuple(b.conv3.weight.shape[:2]) for b in blocks] == [(80, 20), (96, 24), (112, 28)]
    assert net.out_channels == 112


@pytest.mark.parametrize(
    ('depth', 'bottleneck', 'addresses', 'shapes'),
    [
        (14, False, BASIC, [(2, 20, 32, 32), (2, 24, 16, 16), (2, 28, 8, 8)]),
        # Block k = 3 and 5 of 6, after their first 1x1 convolution and so before the map is halved: 16 + 12 k / 6.
        (20, True, BOTTLENECK, [(2, 22, 32, 32), (2, 26, 16, 16), (2, 112, 8, 8)]),
    ],
)
def test_the_papers_features_can_be_tapped_by_address(depth, bottleneck, addresses, shapes):
    model = build_model(classifier(depth, 12, bottleneck), 'mmpretrain').eval()
    x = torch.randn(2, 3, 32, 32)
    taps = FeatureTaps(addresses)
    with torch.no_grad():
        taps.trace(model, lambda: model(x))
        with taps.record(model) as features:
            (out,) = model.backbone(x)
    assert [tuple(f.shape) for f in features.values()] == shapes
    assert all((f < 0).any() for f in features.values())
    assert torch.equal(out, features['group3'].relu())
    assert out.shape[1] == model.backbone.out_channels


@pytest.mark.parametrize('bottleneck', [False, True])
def test_nothing_is_overwritten_after_it_was_an_output(bottleneck):
    net = PyramidNet(20, 12, bottleneck)
    assert not any(getattr(module, 'inplace', False) for module in net.modules())  # list_taps switches them off
    rows = list_taps(net, lambda: net(torch.randn(2, 3, 32, 32)))
    assert rows and not any('overwritten' in row.note for row in rows)


def random_norms(block):
    for module in block.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values in (module.weight, module.bias, module.running_mean):
                torch.nn.init.normal_(values)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return block.eval()


@pytest.mark.parametrize('bottleneck', [False, True])
def test_the_shortcut_appends_channels_of_zeros(bottleneck):
    block = PyramidNet(20, 12, bottleneck).layer1[1].eval()
    torch.nn.init.zeros_((block.bn4 if bottleneck else block.bn3).weight)
    x = torch.randn(1, 72 if bottleneck else 17, 8, 8)
    out = block(x)
    assert out.shape[1] == (80 if bottleneck else 19)
    assert torch.equal(out[:, : x.shape[1]], x)
    assert not out[:, x.shape[1] :].any()


@pytest.mark.parametrize(('side', 'half'), [(8, 4), (7, 4)])
def test_a_shortcut_that_halves_the_map_averages_its_pixels(side, half):
    block = PyramidNet(20, 9).layer2[0].eval()
    torch.nn.init.zeros_(block.bn3.weight)
    x = torch.randn(1, 19, side, side)
    out = block(x)
    assert tuple(out.shape) == (1, 20, half, half)
    torch.testing.assert_close(out[0, :19, 1, 2], x[0, :, 2:4, 4:6].mean((1, 2)))
    if side == 7:
        torch.testing.assert_close(out[0, :19, 3, 3], x[0, :, 6, 6])
    assert not out[:, 19].any()


def test_a_block_has_no_relu_before_its_first_convolution_nor_after_its_last():
    block = random_norms(PyramidNet(20, 9).layer2[0])
    x = torch.randn(1, 19, 8, 8)
    out = F.conv2d(block.bn1(x), block.conv1.weight, stride=2, padding=1)
    out = block.bn3(F.conv2d(block.bn2(out).relu(), block.conv2.weight, padding=1))
    out[:, :19] += F.avg_pool2d(x, 2)
    torch.testing.assert_close(block(x), out)


def test_a_bottleneck_halves_the_map_in_its_3x3_convolution():
    block = random_norms(PyramidNet(20, 12, bottleneck=True).layer2[0])
    x = torch.randn(1, 80, 8, 8)
    out = block.bn2(F.conv2d(block.bn1(x), block.conv1.weight)).relu()
    out = block.bn3(F.conv2d(out, block.conv2.weight, stride=2, padding=1)).relu()
    out = block.bn4(F.conv2d(out, block.conv3.weight))
    out[:, :80] += F.avg_pool2d(x, 2)
    torch.testing.assert_close(block(x), out)


def test_the_stem_has_a_norm_and_no_relu():
    net = random_norms(PyramidNet(20, 9))
    x = torch.randn(1, 3, 8, 8)
    with FeatureTaps({'first': 'layer1.0@in'}).record(net) as features:
        net(x)
    torch.testing.assert_close(features['first'], net.bn1(F.conv2d(x, net.conv1.weight, padding=1)))


def test_convolutions_begin_he_normal_by_fan_out():
    net = PyramidNet(11, 240, bottleneck=True)
    net.init_weights()
    std = net.layer3[0].conv3.weight.std().item()
    assert std == pytest.approx((2 / 1024) ** 0.5, rel=0.02)


@pytest.mark.parametrize('depth', [2, 9, 16, 109])
def test_a_depth_that_no_group_divides_raises(depth):
    with pytest.raises(ValueError, match=rf'6 n \+ 2.*got {depth}'):
        PyramidNet(depth, 84)


@pytest.mark.parametrize('depth', [2, 8, 44])
def test_bottlenecks_need_another_depth(depth):
    with pytest.raises(ValueError, match=rf'9 n \+ 2.*got {depth}'):
        PyramidNet(depth, 240, bottleneck=True)


def test_a_pyramid_that_would_narrow_raises():
    with pytest.raises(ValueError, match=r'alpha.*got -3'):
        PyramidNet(20, -3)


def test_it_is_registered_for_any_host():
    assert MMENGINE_MODELS.get('lckd_mm.PyramidNet') is PyramidNet
    assert (ROOT / 'lckd_mm/backbones/pyramidnet.py').is_file()
