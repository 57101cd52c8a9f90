import math

import pytest
import torch
import torch.nn.functional as F

from lckd_mm.functional import lipschitz_gap, spectral_norm, transmitting_matrix, transmitting_norm
from lckd_mm.functional.lipschitz import GAPS

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def with_spectrum(values, rows, cols):
    """A random matrix (rows, cols) with the given singular values, the rest 0."""
    u = torch.linalg.qr(torch.randn(rows, rows, dtype=DOUBLE)).Q[:, : len(values)]
    v = torch.linalg.qr(torch.randn(cols, cols, dtype=DOUBLE)).Q[:, : len(values)]
    return u @ torch.diag(torch.tensor(values, dtype=DOUBLE)) @ v.T


def maps_with_spectrum(values, c1, c2, size):
    """Maps (1, c1, size, size) and (1, c2, size, size) whose transmitting matrix has the given singular values."""
    area = size * size
    back = torch.linalg.qr(torch.randn(area, c2, dtype=DOUBLE)).Q.T
    front = with_spectrum(values, c1, c2) @ back * area
    return front.view(1, c1, size, size), back.reshape(1, c2, size, size)


def reference_norm(front, back):
    return torch.linalg.svdvals(transmitting_matrix(front, back))[..., 0]


def assert_relative(actual, expected, tolerance):
    error = torch.linalg.vector_norm(actual - expected) / torch.linalg.vector_norm(expected)
    assert error <= tolerance, f'relative error {error:.3g} > {tolerance:g}'


# ---- transmitting_matrix


def test_transmitting_matrix_by_hand():
    front = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])  # channels (1, 2) and (3, 4) at two positions
    back = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]], [[2.0, -2.0]]]])
    expected = torch.tensor([[[0.5, 1.0, -1.0], [1.5, 2.0, -1.0]]])
    assert torch.equal(transmitting_matrix(front, back), expected)


def test_transmitting_matrix_is_the_fsp_matrix_per_sample():
    front, back = torch.randn(3, 4, 5, 6, dtype=DOUBLE), torch.randn(3, 2, 5, 6, dtype=DOUBLE)
    expected = torch.einsum('bihw,bjhw->bij', front, back) / 30
    torch.testing.assert_close(transmitting_matrix(front, back), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(('front', 'back'), [((8, 8), (4, 4)), ((4, 4), (8, 8)), ((6, 2), (3, 4)), ((7, 5), (3, 2))])
def test_the_larger_map_is_pooled_to_the_smaller(front, back):
    a, b = torch.randn(2, 3, *front, dtype=DOUBLE), torch.randn(2, 4, *back, dtype=DOUBLE)
    size = min(front[0], back[0]), min(front[1], back[1])
    expected = transmitting_matrix(F.adaptive_avg_pool2d(a, size), F.adaptive_avg_pool2d(b, size))
    torch.testing.assert_close(transmitting_matrix(a, b), expected, rtol=0, atol=0)
    torch.testing.assert_close(transmitting_norm(a, b), torch.linalg.svdvals(expected)[:, 0], rtol=1e-9, atol=0)


def test_pooling_by_hand():
    front = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])  # mean 4
    assert transmitting_matrix(front, torch.full((1, 1, 1, 1), 2.0)).item() == 8.0
    assert transmitting_norm(front, torch.full((1, 1, 1, 1), -2.0)).item() == 8.0


@pytest.mark.parametrize('function', [transmitting_matrix, transmitting_norm])
@pytest.mark.parametrize(
    ('front', 'back', 'says'),
    [
        ((3, 4, 4), (1, 3, 4, 4), r'front must be a map .* \(3, 4, 4\)'),
        ((1, 3, 4, 4), (1, 3), r'back must be a map .* \(1, 3\)'),
        ((2, 3, 4, 4), (1, 3, 4, 4), 'batch size 2 and back 1'),
    ],
)
def test_bad_shapes_of_maps_raise(function, front, back, says):
    with pytest.raises(ValueError, match=says):
        function(torch.zeros(front), torch.zeros(back))


# ---- spectral_norm


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


def test_spectral_norm_of_a_vector_raises():
    with pytest.raises(ValueError, match=r'expected \(..., M, N\), got shape \(3,\)'):
        spectral_norm(torch.zeros(3))


# ---- transmitting_norm


@pytest.mark.parametrize(('ratio', 'tolerance'), [(0.1, 1e-4), (0.5, 1e-4), (0.8, 1e-2), (0.95, 1e-2)])
@pytest.mark.parametrize('channels', [(4, 6), (6, 4), (1, 5), (5, 1)])
def test_transmitting_norm_gradient_equals_svd(ratio, tolerance, channels):
    values = [2.0, 2.0 * ratio, ratio][: min(channels)]
    front, back = (x.requires_grad_() for x in maps_with_spectrum(values, *channels, 4))
    exact = torch.autograd.grad(reference_norm(front, back).sum(), (front, back))
    value = transmitting_norm(front, back)
    assert value.item() == pytest.approx(2.0, rel=1e-9)
    for gradient, reference in zip(torch.autograd.grad(value.sum(), (front, back)), exact, strict=True):
        assert gradient.abs().max() > 0
        assert_relative(gradient, reference, tolerance)


def test_transmitting_norm_gradient_through_pooling_equals_svd():
    front = torch.randn(2, 3, 8, 8, dtype=DOUBLE, requires_grad=True)
    back = torch.randn(2, 5, 4, 4, dtype=DOUBLE, requires_grad=True)
    exact = torch.autograd.grad(reference_norm(front, back).sum(), (front, back))
    for gradient, reference in zip(torch.autograd.grad(transmitting_norm(front, back).sum(), (front, back)), exact):
        assert_relative(gradient, reference, 1e-4)


def test_transmitting_norm_gradcheck():
    front, back = (x.requires_grad_() for x in maps_with_spectrum([2.0, 1.0], 2, 3, 2))
    assert torch.autograd.gradcheck(transmitting_norm, (front, back))


def test_gradient_reaches_either_factor_alone():
    front, back = maps_with_spectrum([2.0, 1.0], 3, 4, 3)
    both = [x.clone().requires_grad_() for x in (front, back)]
    expected = torch.autograd.grad(transmitting_norm(*both).sum(), both)
    for i in range(2):
        maps = [front.clone(), back.clone()]
        maps[i].requires_grad_()
        transmitting_norm(*maps).sum().backward()
        torch.testing.assert_close(maps[i].grad, expected[i], rtol=0, atol=0)
        assert maps[1 - i].grad is None


@pytest.mark.parametrize(('zero_front', 'zero_back'), [(True, True), (True, False), (False, True)])
def test_zero_maps_give_zero_with_zero_gradient(zero_front, zero_back):
    front, back = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4)
    front, back = front * (not zero_front), back * (not zero_back)
    front.requires_grad_()
    back.requires_grad_()
    value = transmitting_norm(front, back)
    assert torch.equal(value, torch.zeros(2))
    value.sum().backward()
    assert torch.equal(front.grad, torch.zeros_like(front))
    assert torch.equal(back.grad, torch.zeros_like(back))


def test_one_zero_sample_leaves_the_others_alone():
    front, back = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    front[1] = 0
    value = transmitting_norm(front, back)
    assert value[1] == 0
    torch.testing.assert_close(value[::2], transmitting_norm(front[::2], back[::2]))


@pytest.mark.parametrize('scale', [1e4, 1e15, 1e-15])
def test_huge_and_tiny_maps_keep_their_relative_value(scale):
    front, back = (x.float() for x in maps_with_spectrum([2.0, 1.0, 0.5], 4, 5, 4))
    front, back = (front * scale).requires_grad_(), (back * scale).requires_grad_()
    value = transmitting_norm(front, back)
    assert value.dtype == torch.float32
    assert value.item() / scale / scale == pytest.approx(2.0, rel=1e-5)
    value.sum().backward()
    for x in (front, back):
        assert torch.isfinite(x.grad).all()
        # Euler: the value is of degree one in each factor.
        assert (x.grad.double() * x.double()).sum().item() == pytest.approx(value.item(), rel=1e-4)


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_come_out_as_nan(bad):
    front, back = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    front[0, 1, 2, 3] = bad
    value = transmitting_norm(front, back)
    assert value[0].isnan()
    assert value[1].isfinite()
    matrix = torch.randn(2, 3, 4)
    matrix[1, 0, 0] = bad
    assert spectral_norm(matrix).isnan().tolist() == [False, True]


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    front, back = torch.randn(2, 3, 4, 4).to(dtype).requires_grad_(), torch.randn(2, 5, 4, 4).to(dtype)
    for function in (transmitting_norm, transmitting_matrix):
        value = function(front, back)
        assert value.dtype == torch.float32
        assert torch.equal(value, function(front.float(), back.float()))
    transmitting_norm(front, back).sum().backward()
    assert front.grad.dtype == dtype
    matrix = torch.randn(3, 4).to(dtype)
    assert torch.equal(spectral_norm(matrix), spectral_norm(matrix.float()))


def test_mixed_types_are_promoted():
    front, back = torch.randn(2, 3, 4, 4, dtype=torch.float16), torch.randn(2, 3, 4, 4, dtype=DOUBLE)
    assert transmitting_norm(front, back).dtype == DOUBLE


def test_autocast_changes_nothing():
    front, back = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 5, 4, 4, requires_grad=True)
    plain = transmitting_norm(front, back), transmitting_matrix(front, back), spectral_norm(front.flatten(2))
    gradients = torch.autograd.grad(plain[0].sum(), (front, back))
    with torch.autocast('cpu', torch.bfloat16):
        cast = transmitting_norm(front, back), transmitting_matrix(front, back), spectral_norm(front.flatten(2))
        cast_gradients = torch.autograd.grad(cast[0].sum(), (front, back))
    for a, b in zip((*cast, *cast_gradients), (*plain, *gradients), strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


def test_second_derivative_is_refused():
    front, back = (x.requires_grad_() for x in maps_with_spectrum([2.0, 1.0], 2, 3, 2))
    matrix = torch.randn(3, 4, dtype=DOUBLE, requires_grad=True)
    for value, variable in ((transmitting_norm(front, back).sum(), front), (spectral_norm(matrix), matrix)):
        # at once, and not a first gradient without a graph: also where the incoming gradient is a constant
        for result in (value, value.square()):
            with pytest.raises(RuntimeError, match='cannot be differentiated again'):
                torch.autograd.grad(result, variable, create_graph=True)
        assert torch.autograd.grad(value, variable)[0].any()


def test_scaling_one_factor_scales_the_value():
    front, back = torch.randn(2, 3, 4, 4, dtype=DOUBLE), torch.randn(2, 5, 4, 4, dtype=DOUBLE)
    value = transmitting_norm(front, back)
    torch.testing.assert_close(transmitting_norm(3.7 * front, back), 3.7 * value, rtol=1e-12, atol=0)
    torch.testing.assert_close(transmitting_norm(front, -0.2 * back), 0.2 * value, rtol=1e-12, atol=0)


def test_orthogonal_mixing_of_channels_leaves_the_value():
    front, back = maps_with_spectrum([2.0, 1.4, 1.0], 4, 6, 4)
    mixed = []
    for x in (front, back):
        rotation = torch.linalg.qr(torch.randn(x.shape[1], x.shape[1], dtype=DOUBLE)).Q
        mixed.append(torch.einsum('ij,bjhw->bihw', rotation, x))
    torch.testing.assert_close(transmitting_norm(*mixed), transmitting_norm(front, back), rtol=1e-10, atol=0)


# ---- lipschitz_gap


@pytest.mark.parametrize(
    ('gap', 'expected'), [('absolute', 4.0), ('relative', (2 / 1.5) ** 2), ('log', math.log(3.5 / 1.5) ** 2)]
)
def test_gap_by_hand(gap, expected):
    student, teacher = torch.tensor(3.0, dtype=DOUBLE), torch.tensor(1.0, dtype=DOUBLE)
    assert lipschitz_gap(student, teacher, gap, eps=0.5).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize('gap', GAPS)
def test_gap_of_equals_is_zero(gap):
    x = torch.tensor([0.0, 1e-9, 1.0, 1e9])
    assert torch.equal(lipschitz_gap(x, x, gap), torch.zeros(4))


@pytest.mark.parametrize('gap', GAPS)
@pytest.mark.parametrize('zero', ['student', 'teacher'])
def test_gap_with_a_zero_on_either_side_is_finite_with_finite_gradient(gap, zero):
    s = torch.tensor([0.0 if zero == 'student' else 2.0], requires_grad=True)
    value = lipschitz_gap(s, torch.tensor([0.0 if zero == 'teacher' else 2.0]), gap)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(s.grad).all()
    assert s.grad.item() * (1 if zero == 'teacher' else -1) > 0


@pytest.mark.parametrize(('gap', 'degree'), [('log', 0), ('relative', 0), ('absolute', 2)])
def test_gap_under_a_common_scaling(gap, degree):
    s, t = torch.rand(5, dtype=DOUBLE) + 0.5, torch.rand(5, dtype=DOUBLE) + 0.5
    scaled = lipschitz_gap(100 * s, 100 * t, gap)
    torch.testing.assert_close(scaled, 100.0**degree * lipschitz_gap(s, t, gap), rtol=1e-4, atol=1e-9)


def test_log_gap_is_symmetric_and_relative_is_not():
    s, t = torch.tensor(2.0), torch.tensor(1.0)
    assert lipschitz_gap(s, t, 'log') == lipschitz_gap(t, s, 'log')
    assert lipschitz_gap(s, t, 'relative') > 3 * lipschitz_gap(t, s, 'relative')


def test_unknown_gap_raises():
    with pytest.raises(ValueError, match="unknown gap 'ratio', expected one of absolute, relative, log"):
        lipschitz_gap(torch.ones(1), torch.ones(1), 'ratio')
