import math

import pytest
import torch
from spectra import DOUBLE
from torch import nn

from lckd_mm.functional import local_lipschitz, product_bound


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def jacobian_norms(function, inputs):
    """The exact constants, from dense Jacobians."""
    jacobians = [torch.func.jacrev(function)(x[None]).reshape(-1, x.numel()) for x in inputs]
    return torch.stack([torch.linalg.svdvals(j)[0] for j in jacobians]).detach()


def small_net():
    return (
        nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.Tanh(),
            nn.MaxPool2d(3, 2, 1),
            nn.Sequential(nn.Conv2d(4, 6, 3, stride=2), nn.LeakyReLU(0.2)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 5),
        )
        .double()
        .eval()
    )


# ---- local_lipschitz


def test_local_constant_of_a_function_by_hand():
    x = torch.tensor([[0.0, 0.5], [1.0, -2.0]], dtype=DOUBLE)
    constants = local_lipschitz(lambda x: torch.stack([3 * x[:, 0], x[:, 1] ** 2], 1), x)
    # The Jacobians are diag(3, 2 x2): diag(3, 1) and diag(3, -4).
    torch.testing.assert_close(constants, torch.tensor([3.0, 4.0], dtype=DOUBLE), rtol=1e-8, atol=0)


def test_local_constant_of_a_net_equals_its_jacobian_sample_by_sample():
    net, x = small_net(), torch.randn(4, 2, 9, 9, dtype=DOUBLE)
    constants = local_lipschitz(net, x)
    torch.testing.assert_close(constants, jacobian_norms(net, x), rtol=1e-7, atol=0)
    assert not constants.requires_grad
    assert all(p.grad is None for p in net.parameters())


def test_local_constant_survives_no_grad_and_a_tight_budget():
    net, x = small_net(), torch.randn(2, 2, 9, 9, dtype=DOUBLE)
    with torch.no_grad():
        torch.testing.assert_close(local_lipschitz(net, x), jacobian_norms(net, x), rtol=1e-7, atol=0)
    rough = local_lipschitz(net, x, max_steps=2)
    assert (rough <= jacobian_norms(net, x) * (1 + 1e-12)).all()
    assert (rough >= 0.5 * jacobian_norms(net, x)).all()


def test_the_residual_says_whether_the_iteration_converged():
    net, x = small_net(), torch.randn(3, 2, 9, 9, dtype=DOUBLE)
    constants, residual = local_lipschitz(net, x, tol=1e-6, residual=True)
    torch.testing.assert_close(constants, jacobian_norms(net, x), rtol=1e-8, atol=0)
    assert (residual <= 1e-6 * (1 + 1e-6)).all()
    constants, residual = local_lipschitz(net, x, tol=1e-6, max_steps=2, residual=True)
    assert torch.equal(constants, local_lipschitz(net, x, max_steps=2))
    assert (residual > 1e-4).all()
    # By hand: one step looks at v = start alone, of J = diag(3, 4): J'J v - (v'J'Jv) v.
    matrix = torch.tensor([3.0, 4.0], dtype=DOUBLE)
    sigma, residual = local_lipschitz(lambda x: x * matrix, x.new_zeros(1, 2), max_steps=1, residual=True)
    share = (sigma**2 - 9) / 7  # of the second entry's square in v
    expected = 7 * (share * (1 - share)).sqrt() / sigma**2
    torch.testing.assert_close(residual, expected, rtol=1e-6, atol=0)
    assert local_lipschitz(lambda x: 0 * x, torch.ones(2, 3), residual=True)[1].tolist() == [0, 0]


PARAMETER = torch.ones(1, 3, requires_grad=True)


@pytest.mark.parametrize(
    'flat',
    [
        lambda x: x.detach() * 0 + 1,
        lambda x: x * 0,
        lambda x: torch.zeros(2, 3),
        lambda x: PARAMETER.expand(2, 3) * 1,
    ],
)
def test_a_flat_function_has_the_constant_zero(flat):
    assert torch.equal(local_lipschitz(flat, torch.randn(2, 3)), torch.zeros(2))


@pytest.mark.parametrize('net', [nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False).eval()])
def test_batch_statistics_are_refused(net):
    with pytest.raises(ValueError, match='takes statistics of the batch'):
        local_lipschitz(nn.Sequential(net), torch.randn(2, 3))


def test_local_constants_of_a_half_precision_function_are_wide():
    constants = local_lipschitz(lambda x: x * 300, torch.randn(2, 3).half())
    torch.testing.assert_close(constants, torch.full((2,), 300.0), rtol=1e-3, atol=0)


def test_inference_mode_and_an_in_place_function_change_nothing():
    x = torch.randn(2, 3)
    before = x.clone()
    with torch.inference_mode():
        constants = local_lipschitz(lambda y: y.mul_(2), x)
    torch.testing.assert_close(constants, torch.full((2,), 2.0))
    assert torch.equal(x, before)


def test_no_samples_have_no_constants():
    assert local_lipschitz(nn.ReLU(), torch.zeros(0, 3)).shape == (0,)


# ---- product_bound


@pytest.mark.parametrize(
    'layer',
    [
        nn.Conv2d(3, 5, 3),
        nn.Conv2d(3, 5, 3, padding=1),
        nn.Conv2d(3, 5, 3, stride=2, padding=1),
        nn.Conv2d(3, 5, 3, padding=2, dilation=2),
        nn.Conv2d(3, 6, 3, padding=1, groups=3),
        nn.Conv2d(3, 5, 3, padding=1, padding_mode='reflect'),
        nn.ConvTranspose2d(3, 5, 3, stride=2),
        nn.Conv2d(3, 5, 1),
        nn.Linear(6, 4),
        nn.AvgPool2d(3, 1, 1),
    ],
    ids=str,
)
def test_a_layer_has_the_norm_of_its_dense_matrix(layer):
    layer, x = layer.double(), torch.randn(2, 3, 7, 6, dtype=DOUBLE)
    bound = product_bound(layer, x, tol=1e-8)
    torch.testing.assert_close(bound.detach(), jacobian_norms(layer, x[:1])[0], rtol=1e-7, atol=0)


def test_circular_padding_has_the_norm_known_in_closed_form():
    layer = nn.Conv2d(3, 4, 3, padding=1, padding_mode='circular', bias=False).double()
    # Sedghi et al. 2019: the largest singular value over the frequencies of the kernel's transform.
    spectra = torch.fft.fft2(layer.weight.detach(), (8, 8)).permute(2, 3, 0, 1)
    expected = torch.linalg.svdvals(spectra)[..., 0].amax()
    norm = product_bound(layer, torch.zeros(1, 3, 8, 8).double(), tol=1e-8).detach()
    torch.testing.assert_close(norm, expected, rtol=1e-7, atol=0)


def test_product_by_hand():
    norm = nn.BatchNorm1d(2, affine=False).eval()
    norm.running_var = torch.tensor([0.25, 4.0])
    linear = nn.Linear(2, 2)
    linear.weight.data = torch.tensor([[0.0, 5.0], [2.0, 0.0]])
    net = nn.Sequential(linear, nn.Sequential(norm, nn.Sigmoid())).double()
    assert product_bound(net, torch.zeros(1, 2).double()).item() == pytest.approx(5 * 2 * 0.25, rel=1e-4)


def test_product_bounds_the_local_constants_from_above():
    net, x = small_net(), torch.randn(8, 2, 9, 9, dtype=DOUBLE)
    bound = product_bound(net, x)
    assert bound >= local_lipschitz(net, x).max()
    layers = (net[0], (1, 2, 9, 9)), (net[3][0], (1, 4, 5, 5)), (net[6], (1, 6))
    norms = [jacobian_norms(layer, torch.zeros(shape, dtype=DOUBLE)).item() for layer, shape in layers]
    # Overlapping windows of 3 by 2, and the mean over 2 x 2 positions are what is left.
    assert bound.item() == pytest.approx(2.0 * 0.5 * math.prod(norms), rel=1e-6)


@pytest.mark.parametrize(
    ('pool', 'factor'), [(nn.MaxPool2d(2), 1.0), (nn.MaxPool2d(3, 2), 2.0), (nn.MaxPool2d(3, 1), 3.0)]
)
def test_max_pooling_counts_the_windows_that_share_an_entry(pool, factor):
    x = torch.zeros(1, 1, 9, 9, dtype=DOUBLE)
    assert product_bound(pool, x).item() == pytest.approx(factor)
    x[0, 0, 4, 4] = 1.0  # a peak that all windows around it take: the bound is reached
    reached = local_lipschitz(pool, x).item()
    assert reached <= factor * (1 + 1e-9)
    if factor in (1.0, 3.0):
        assert reached == pytest.approx(factor)


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


@pytest.mark.parametrize(
    ('layer', 'says'),
    [
        (Residual(nn.Conv2d(2, 2, 1)), r"'1' \(Residual\) has parameters"),
        (nn.Sequential(nn.BatchNorm2d(2)), r"'1.0' \(BatchNorm2d\) has parameters"),
        (nn.Softmax(1), '_softmax has no constant'),
    ],
)
def test_what_has_no_known_constant_is_refused_by_name(layer, says):
    with pytest.raises(ValueError, match=says):
        product_bound(nn.Sequential(nn.ReLU(), layer), torch.zeros(1, 2, 4, 4))
