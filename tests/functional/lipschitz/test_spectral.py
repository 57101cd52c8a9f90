import math

import pytest
import torch
from spectra import DOUBLE, assert_relative, with_spectrum

from lckd_mm.functional import spectral_norm


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ('matrix', 'expected'),
    [
        ([[3.0, 0.0], [4.0, 5.0]], math.sqrt(45)),
        ([[0.0, -7.0]], 7.0),
        ([[1.0], [2.0], [2.0]], 3.0),
        ([[-2.5]], 2.5),
        ([[2.0, 0.0], [0.0, 2.0]], 2.0),
    ],
)
def test_spectral_norm_by_hand(matrix, expected):
    assert spectral_norm(torch.tensor(matrix, dtype=DOUBLE)).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize('shape', [(1, 9), (9, 1), (1, 1), (5, 40), (40, 5), (16, 16), (3, 8, 12), (2, 3, 12, 7)])
def test_spectral_norm_of_random_matrices_equals_svd(shape):
    matrix = torch.randn(shape, dtype=DOUBLE)
    exact = torch.linalg.svdvals(matrix)
    value = spectral_norm(matrix)
    assert value.shape == shape[:-2]
    ratio = exact[..., 1] / exact[..., 0] if min(shape[-2:]) > 1 else torch.zeros_like(value)
    error = (value - exact[..., 0]).abs() / exact[..., 0]
    assert (error[ratio <= 0.95] <= 1e-9).all()
    assert (error <= 1e-3).all()


@pytest.mark.parametrize('ratio', [0.0, 0.5, 0.8, 0.95])
@pytest.mark.parametrize('shape', [(6, 6), (4, 20), (20, 4)])
def test_spectral_norm_of_a_known_spectrum(ratio, shape):
    matrix = with_spectrum([3.0, 3.0 * ratio, 0.1], *shape)
    assert spectral_norm(matrix).item() == pytest.approx(3.0, rel=1e-9)


@pytest.mark.parametrize('ratio', [0.99, 0.999, 0.9999, 1.0])
def test_spectral_norm_of_a_near_double_value_stays_close(ratio):
    values = [1.0, *[ratio] * 7]
    value = spectral_norm(with_spectrum(values, 8, 12)).item()
    assert 1 - 1e-3 <= value <= 1 + 1e-12


@pytest.mark.parametrize(('ratio', 'tolerance'), [(0.1, 1e-4), (0.5, 1e-4), (0.8, 1e-2), (0.95, 1e-2)])
@pytest.mark.parametrize('shape', [(5, 9), (9, 5)])
def test_spectral_norm_gradient_equals_svd(ratio, tolerance, shape):
    matrix = with_spectrum([2.0, 2.0 * ratio, ratio, 0.5 * ratio], *shape).requires_grad_()
    (exact,) = torch.autograd.grad(torch.linalg.svdvals(matrix)[0], matrix)
    (gradient,) = torch.autograd.grad(spectral_norm(matrix), matrix)
    assert_relative(gradient, exact, tolerance)


def test_spectral_norm_gradcheck():
    matrix = torch.stack([with_spectrum([2.0, 1.0, 0.5], 3, 4), with_spectrum([1.0, 0.6], 3, 4)]).requires_grad_()
    assert torch.autograd.gradcheck(spectral_norm, matrix)


def test_what_is_no_matrix_raises():
    with pytest.raises(ValueError, match=r'\(3,\)'):
        spectral_norm(torch.zeros(3))
    with pytest.raises(ValueError, match='without entries'):
        spectral_norm(torch.zeros(3, 0, 4))
