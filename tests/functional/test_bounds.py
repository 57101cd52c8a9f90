import pytest
import torch
import torch.nn.functional as F
from spectra import DOUBLE
from torch import nn

from lckd_mm.functional import graph_bound, local_lipschitz


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def exact(function, x):
    jacobian = torch.func.jacrev(function)(x).reshape(-1, x.numel())
    return torch.linalg.svdvals(jacobian)[0].detach()


class Block(nn.Module):
    """A residual block as the hosts write it: in-place activations, ``+=``, a projection beside it."""

    def __init__(self, channels, out, stride=1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, out, 3, stride, 1), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, padding=1), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.short = nn.Conv2d(channels, out, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.short(x)
        return self.relu(out)


def residual_net():
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), Block(4, 4), Block(4, 6, 2)).double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, -1, 1)
    return net.eval()


def test_sums_products_and_concatenations_by_hand():
    x = torch.zeros(1, 3, dtype=DOUBLE)
    a = torch.diag(torch.tensor([1.0, -5.0, 2.0], dtype=DOUBLE))
    for function, expected in (
        (lambda x: x @ a, 5),
        (lambda x: x + x @ a, 6),
        (lambda x: torch.sub(x, x @ a, alpha=3), 16),
        (lambda x: torch.cat([3 * x, 4 * x], 1), 5),
        (lambda x: F.linear(x, a, x.new_ones(3)).relu_() + 1, 5),
        (lambda x: -x * torch.tensor([2.0, 7.0, 1.0], dtype=DOUBLE) / 2, 3.5),
        (lambda x: torch.sigmoid(x.view(3)).unsqueeze(0), 0.25),
        (lambda x: F.leaky_relu(x, -1.5), 1.5),
        # One entry is repeated four times: the norm is 2.
        (lambda x: x[:, :1] + torch.zeros(1, 4, dtype=DOUBLE), 2),
        (lambda x: x.sum(1, keepdim=True), 3**0.5),
        (lambda x: torch.ones_like(x), 0),
    ):
        assert graph_bound(function, x).item() == pytest.approx(expected, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize(
    'layer',
    [
        nn.Conv2d(3, 5, 3, stride=2, padding=1),
        nn.Conv2d(3, 6, 3, groups=3, dilation=2, padding=2),
        nn.ConvTranspose2d(3, 5, 3, stride=2),
        nn.AvgPool2d(3, 2, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveAvgPool2d(3),
        nn.Upsample(scale_factor=2),
        nn.Upsample(size=(9, 11), mode='bilinear'),
        nn.ZeroPad2d(2),
        nn.Flatten(),
        nn.Linear(6, 4),
    ],
    ids=str,
)
def test_a_linear_layer_has_its_exact_norm(layer):
    layer, x = layer.double(), torch.randn(1, 3, 7, 6, dtype=DOUBLE)
    torch.testing.assert_close(graph_bound(layer, x, tol=1e-8), exact(layer, x), rtol=1e-7, atol=0)


@pytest.mark.parametrize('slope', [F.silu, F.gelu, F.hardswish, F.hardsigmoid, torch.sigmoid, F.tanh, F.softplus])
def test_slopes_are_the_largest_ones(slope):
    x = torch.linspace(-8, 8, 200_001, dtype=DOUBLE).requires_grad_()
    (slopes,) = torch.autograd.grad(slope(x).sum(), x)
    bound = graph_bound(slope, torch.zeros(1, 2, dtype=DOUBLE)).item()
    assert slopes.abs().max().item() <= bound * (1 + 1e-7)  # torch's own sixth is of float32
    assert bound == pytest.approx(slopes.abs().max().item(), rel=1e-3)


def test_a_residual_block_adds_its_paths():
    block, x = Block(4, 6, 2).double().eval(), torch.randn(1, 4, 8, 8, dtype=DOUBLE)
    y = block.conv1(x).detach()
    scale = (1 + block.bn1.eps) ** -0.5
    branch = exact(block.conv1, x) * scale * exact(block.conv2, y) * scale
    torch.testing.assert_close(graph_bound(block, x), branch + exact(block.short, x), rtol=1e-8, atol=0)
    same = Block(4, 4).double().eval()
    branch = exact(same.conv1, x) * scale * exact(same.conv2, x) * scale
    torch.testing.assert_close(graph_bound(same, x), 1 + branch, rtol=1e-8, atol=0)


def test_it_bounds_the_local_constants_of_a_residual_net():
    net, x = residual_net(), 3 * torch.randn(16, 2, 12, 12, dtype=DOUBLE)
    before = x.clone()
    bound = graph_bound(net, x[:1])
    assert bound >= local_lipschitz(net, x).max()
    # Not the product alone, which forgets the skip connections.
    assert torch.equal(bound, graph_bound(net, 0 * x[:1])) and torch.equal(x, before)


def squeeze(x):
    return x * torch.sigmoid(x.mean((2, 3), keepdim=True))


def part(x):
    y = torch.zeros_like(x)
    y[:, :1] = 2 * x[:, :1]
    return y


def written_below(x):
    y = 2 * x
    view = y[:, :1]
    y.mul_(3)
    return view


@pytest.mark.parametrize(
    ('function', 'name'),
    [
        (squeeze, 'mul'),
        (lambda x: x.softmax(1), '_softmax'),
        (lambda x: F.layer_norm(x, (4,)), 'native_layer_norm'),
        (nn.BatchNorm2d(2), 'native_batch_norm'),
        (lambda x: x * x.abs().max().item(), 'a value read as a number'),
        (part, 'copy_ on a part of a tensor'),
        (written_below, 'mul_ on a part of a tensor'),
        (lambda x: F.max_pool2d(x, 2, return_indices=True)[1].float(), 'result 1 of max_pool2d_with_indices'),
    ],
)
def test_what_is_not_known_is_refused_by_name(function, name):
    with pytest.raises(ValueError, match=rf'graph_bound: {name} has no constant'):
        graph_bound(function, torch.ones(1, 2, 4, 4))


def test_what_is_not_known_off_the_way_does_not_matter():
    def function(x):
        x.softmax(1).sum()
        return 3 * x

    assert graph_bound(function, torch.ones(1, 2)).item() == pytest.approx(3)


def test_more_than_one_sample_is_refused():
    with pytest.raises(ValueError, match=r'expected one sample \(1, ...\), got \(2, 3\)'):
        graph_bound(nn.ReLU(), torch.ones(2, 3))
