import pytest
import torch
from mmengine.registry import MODELS as MMENGINE_MODELS
from run_helpers import ROOT

from lckd_mm.backbones import WideResNet
from lckd_mm.hosts import build_model
from lckd_mm.taps import FeatureTaps


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
