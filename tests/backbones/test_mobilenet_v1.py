import pytest
import torch
from mmengine.registry import MODELS as MMENGINE_MODELS
from run_helpers import ROOT
from torch.nn import functional as F

from lckd_mm.backbones import MobileNetV1
from lckd_mm.hosts import build_model
from lckd_mm.taps import FeatureTaps
from lckd_mm.taps.listing import list_taps


def test_block_addresses_end_in_an_activation():
    model = MobileNetV1(stem='cifar', width_multiplier=0.25).eval()
    x = torch.randn(1, 3, 32, 32)
    taps = FeatureTaps({'bn': 'block5.bn2', 'preact': 'block5@preact'})
    taps.trace(model, lambda: model(x))
    with taps.record(model) as features:
        model(x)
    assert torch.equal(features['bn'], features['preact'])


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
