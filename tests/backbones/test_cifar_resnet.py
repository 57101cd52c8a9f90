import pytest
import torch
from mmengine.registry import MODELS as MMENGINE_MODELS
from run_helpers import ROOT
from torch.nn import functional as F

from lckd_mm.backbones import CifarResNet
from lckd_mm.hosts import build_model
from lckd_mm.taps import FeatureTaps
from lckd_mm.taps.listing import list_taps


def count(net):
    return sum(p.numel() for p in net.parameters())


def test_option_b_adds_two_projections_and_their_norms():
    assert count(CifarResNet(20)) - count(CifarResNet(20, shortcut='A')) == 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64


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


def test_widths_of_its_own():
    model = CifarResNet(32, widths=(32, 64, 128, 256))
    assert [model.get_submodule(f'layer{i}')[4].conv2.weight.shape[0] for i in (1, 2, 3)] == [64, 128, 256]
    assert model(torch.zeros(1, 3, 32, 32))[0].shape == (1, 256, 8, 8)
