import math

import pytest
import torch

from lckd_mm.functional import transmitting_matrix
from lckd_mm.functional.lipschitz import GAPS
from lckd_mm.losses import LipschitzLoss, LONDONLoss

DOUBLE = torch.float64
WEIGHTS = {2: [0.5], 3: [0.25, 0.5], 4: [0.125, 0.25, 0.5]}
EPS = 1e-6
GAP = {
    'absolute': lambda s, t: (s - t) ** 2,
    'relative': lambda s, t: ((s - t) / (t + EPS)) ** 2,
    'log': lambda s, t: (torch.log(s + EPS) - torch.log(t + EPS)) ** 2,
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def pyramid(n, widths=(3, 4, 5, 6), batch=2):
    """n maps, each half the size of the one before."""
    return [torch.randn(batch, widths[i], 2 ** (4 - i), 2 ** (4 - i), dtype=DOUBLE) for i in range(n)]


def norms(front, back):
    return torch.linalg.svdvals(transmitting_matrix(front, back))[:, 0]


def by_loop(student, teacher, gap, weights, backs=None):
    backs = student if backs is None else backs
    total = 0.0
    for i, weight in enumerate(weights):
        s, t = norms(student[i], backs[i + 1]), norms(teacher[i], teacher[i + 1])
        total = total + weight * sum(GAP[gap](s[b], t[b]) for b in range(len(s))) / len(s)
    return total


@pytest.mark.parametrize('gap', GAPS)
@pytest.mark.parametrize('taps', [2, 3, 4])
def test_equals_the_formula_with_the_default_weights(gap, taps):
    student, teacher = pyramid(taps), pyramid(taps, (5, 8, 7, 9))
    value = LipschitzLoss(gap=gap)(student, teacher)
    assert value.shape == ()
    torch.testing.assert_close(value, by_loop(student, teacher, gap, WEIGHTS[taps]), rtol=1e-9, atol=0)


def test_value_by_hand():
    student = [torch.full((1, 1, 1, 1), 6.0), torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 2.0)]
    teacher = [torch.full((1, 1, 1, 1), 2.0), torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1)]
    # The constants are 6 and 2 of the student, 2 and 1 of the teacher.
    assert LipschitzLoss('absolute')(student, teacher).item() == pytest.approx(16 / 4 + 1 / 2)
    assert LipschitzLoss('relative')(student, teacher).item() == pytest.approx(4 / 4 + 1 / 2, rel=1e-5)
    assert LipschitzLoss()(student, teacher).item() == pytest.approx(
        math.log(3) ** 2 / 4 + math.log(2) ** 2 / 2, rel=1e-5
    )


def test_the_default_gap_is_log():
    student, teacher = pyramid(2), pyramid(2)
    assert torch.equal(LipschitzLoss()(student, teacher), LipschitzLoss('log')(student, teacher))


def test_custom_weights():
    student, teacher = pyramid(3), pyramid(3)
    value = LipschitzLoss(layer_weights=[2, 0.5])(student, teacher)
    torch.testing.assert_close(value, by_loop(student, teacher, 'log', [2.0, 0.5]), rtol=1e-9, atol=0)


@pytest.mark.parametrize('gap', GAPS)
def test_raw_back_takes_the_later_map_before_its_connector(gap):
    raw, connected, teacher = pyramid(3), pyramid(3, (4, 6, 8)), pyramid(3, (4, 6, 8))
    loss = LipschitzLoss(gap, raw_back=True)
    expected = by_loop(connected, teacher, gap, WEIGHTS[3], backs=raw)
    torch.testing.assert_close(loss(connected, teacher, raw), expected, rtol=1e-9, atol=0)
    without = LipschitzLoss(gap)(connected, teacher, raw)
    torch.testing.assert_close(without, by_loop(connected, teacher, gap, WEIGHTS[3]), rtol=1e-9, atol=0)
    assert torch.equal(loss(raw, teacher, raw), LipschitzLoss(gap)(raw, teacher))


def test_the_authors_setting_has_a_name():
    raw, connected, teacher = pyramid(3), pyramid(3, (4, 6, 8)), pyramid(3, (4, 6, 8))
    expected = by_loop(connected, teacher, 'absolute', WEIGHTS[3], backs=raw)
    torch.testing.assert_close(LONDONLoss()(connected, teacher, raw), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize('gap', GAPS)
def test_gradient_equals_that_of_the_formula_and_reaches_the_student_only(gap):
    student, teacher = ([x.requires_grad_() for x in pyramid(3)] for _ in range(2))
    loss = LipschitzLoss(gap)(student, teacher)
    exact = torch.autograd.grad(by_loop(student, [t.detach() for t in teacher], gap, WEIGHTS[3]), student)
    loss.backward()
    for x, reference in zip(student, exact, strict=True):
        assert x.grad.abs().max() > 0
        torch.testing.assert_close(x.grad, reference, rtol=1e-4, atol=1e-4 * reference.abs().max().item())
    assert all(t.grad is None for t in teacher)


@pytest.mark.parametrize('gap', GAPS)
@pytest.mark.parametrize(('ratio', 'tolerance'), [(0.5, 1e-4), (0.95, 1e-2)])
def test_gradient_for_a_known_spectrum(gap, ratio, tolerance):
    # Orthonormal rows at the back make the transmitting matrix that of the front: its spectrum is the one chosen.
    back = torch.linalg.qr(torch.randn(16, 4, dtype=DOUBLE)).Q.T.view(1, 4, 4, 4)
    u, v = (torch.linalg.qr(torch.randn(n, n, dtype=DOUBLE)).Q[:, :3] for n in (5, 4))
    mixed = u @ torch.diag(torch.tensor([2.0, 2.0 * ratio, 0.3], dtype=DOUBLE)) @ v.T
    front = (16 * mixed @ back.flatten(2)[0]).view(1, 5, 4, 4)
    student, teacher = [front.requires_grad_(), back.requires_grad_()], pyramid(2, batch=1)
    exact = torch.autograd.grad(by_loop(student, teacher, gap, [0.5]), student)
    for gradient, reference in zip(torch.autograd.grad(LipschitzLoss(gap)(student, teacher), student), exact):
        assert torch.linalg.vector_norm(gradient - reference) <= tolerance * torch.linalg.vector_norm(reference)


@pytest.mark.parametrize('gap', GAPS)
@pytest.mark.parametrize('zero', ['student', 'teacher', 'both'])
def test_zero_maps_give_a_finite_loss_and_gradient(gap, zero):
    student, teacher = pyramid(3), pyramid(3)
    student = [(x * (zero == 'teacher')).requires_grad_() for x in student]
    teacher = [x * (zero == 'student') for x in teacher]
    loss = LipschitzLoss(gap)(student, teacher)
    loss.backward()
    assert torch.isfinite(loss)
    assert (loss.item() == 0) == (zero == 'both')
    for x in student:
        assert torch.isfinite(x.grad).all()
        if zero != 'teacher':
            assert torch.equal(x.grad, torch.zeros_like(x))


def test_equal_nets_give_zero():
    maps = pyramid(4)
    for gap in GAPS:
        assert LipschitzLoss(gap)(maps, maps).item() == 0


def test_a_step_against_the_gradient_lowers_the_loss():
    student, teacher = [x.requires_grad_() for x in pyramid(3)], pyramid(3)
    loss = LipschitzLoss()(student, teacher)
    gradients = torch.autograd.grad(loss, student)
    moved = [x - 0.01 * g for x, g in zip(student, gradients, strict=True)]
    drop = loss - LipschitzLoss()(moved, teacher)
    expected = 0.01 * sum(g.square().sum() for g in gradients)
    assert drop.item() == pytest.approx(expected.item(), rel=0.1)


@pytest.mark.parametrize(
    ('student', 'teacher', 'says'),
    [
        (1, 1, 'at least two taps'),
        (3, 2, '3 student tensors, but 2'),
        (4, 4, '2 layer_weights for 3 pairs'),
    ],
)
def test_a_count_that_does_not_fit_raises(student, teacher, says):
    with pytest.raises(ValueError, match=says):
        LipschitzLoss(layer_weights=[1.0, 1.0])(pyramid(student), pyramid(teacher))


def test_a_single_tensor_raises():
    with pytest.raises(ValueError, match='at least two taps'):
        LipschitzLoss()(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4))


def test_unknown_gap_raises():
    with pytest.raises(ValueError, match="LipschitzLoss: unknown gap 'l2', expected one of absolute, relative, log"):
        LipschitzLoss(gap='l2')


# ---- normalised maps, tokens


@pytest.mark.parametrize('gap', GAPS)
def test_normalised_norms_are_those_of_normalised_maps(gap):
    def unit(maps):
        return [x / (x.square().sum(1, keepdim=True).mean((2, 3), keepdim=True)).sqrt() for x in maps]

    student, teacher = pyramid(3), pyramid(3, (5, 8, 7))
    expected = by_loop(unit(student), unit(teacher), gap, WEIGHTS[3])
    torch.testing.assert_close(LipschitzLoss(gap, normalise=True)(student, teacher), expected, rtol=1e-9, atol=0)


def test_normalised_norms_do_not_see_the_size_of_the_activations():
    student, teacher = pyramid(3), pyramid(3)
    loss = LipschitzLoss(normalise=True)
    scaled = [x * k for x, k in zip(student, (5.0, 0.1, 30.0))]
    torch.testing.assert_close(loss(scaled, teacher), loss(student, teacher))
    maps = [torch.randn(2, 3, 4, 4, dtype=DOUBLE, requires_grad=True) for _ in range(2)]
    loss(maps, pyramid(2)).backward()
    # Along the map itself nothing changes.
    assert all((x * x.grad).sum().abs() < 1e-9 * x.grad.abs().sum() for x in maps)


def test_normalised_zero_maps_are_finite():
    zero = [torch.zeros(2, 3, 4, 4, requires_grad=True) for _ in range(2)]
    value = LipschitzLoss(normalise=True)(zero, [x.float() for x in pyramid(2)])
    value.backward()
    assert torch.isfinite(value)
    assert all(torch.isfinite(x.grad).all() for x in zero)


def test_normalised_norms_with_a_raw_back():
    student, raw, teacher = pyramid(3), pyramid(3), pyramid(3)
    value = LipschitzLoss(normalise=True, raw_back=True)(student, teacher, raw)

    def unit(maps):
        return [x / (x.square().sum(1, keepdim=True).mean((2, 3), keepdim=True)).sqrt() for x in maps]

    torch.testing.assert_close(value, by_loop(unit(student), unit(teacher), 'log', WEIGHTS[3], unit(raw)))


def test_tokens_of_one_number_are_taken_as_they_are():
    tokens = [torch.randn(2, 10, c, dtype=DOUBLE) for c in (4, 6)]
    teacher = [torch.randn(2, 10, c, dtype=DOUBLE) for c in (3, 5)]
    norms = [torch.linalg.svdvals(a.mT @ b / 10)[:, 0] for a, b in (tokens, teacher)]
    expected = 0.5 * (norms[0].add(1e-6).log() - norms[1].add(1e-6).log()).square().mean()
    torch.testing.assert_close(LipschitzLoss()(tokens, teacher), expected)


def test_tokens_of_two_numbers_are_squares():
    maps, teacher = pyramid(3), pyramid(3)
    tokens = [x.flatten(2).transpose(1, 2) for x in maps]
    torch.testing.assert_close(LipschitzLoss()(tokens, teacher), LipschitzLoss()(maps, teacher))
    mixed = [tokens[0], maps[1], tokens[2]]
    torch.testing.assert_close(LipschitzLoss()(mixed, teacher), LipschitzLoss()(maps, teacher))


@pytest.mark.parametrize('size', [(36, 64), (64, 36), (25, 42), (8, 32)])
def test_tokens_have_the_aspect_of_the_images(size):
    height, width = size
    maps = [
        torch.randn(2, 3, height, width, dtype=DOUBLE),
        torch.randn(2, 4, -(-height // 2), -(-width // 2), dtype=DOUBLE),
    ]
    tokens = [x.flatten(2).transpose(1, 2) for x in maps]
    images = torch.zeros(1, 3, 8 * height, 8 * width)
    teacher = pyramid(2)
    torch.testing.assert_close(LipschitzLoss()(tokens, teacher, inputs=images), LipschitzLoss()(maps, teacher))


def test_tokens_without_a_grid_raise():
    tokens = [torch.zeros(1, 10, 3), torch.zeros(1, 5, 3)]
    with pytest.raises(ValueError, match=r'\[5, 10\] tokens at the taps do not all fill a grid of the aspect 1;'):
        LipschitzLoss()(tokens, tokens)
    with pytest.raises(ValueError, match=r'expected a map \(B, C, H, W\) or tokens \(B, N, C\), got shape \(2, 3\)'):
        LipschitzLoss()([torch.zeros(2, 3)] * 2, [torch.zeros(2, 3)] * 2)


@pytest.mark.parametrize('batch', [2, 16])
@pytest.mark.parametrize('gap', GAPS)
def test_a_net_has_no_gap_to_itself(gap, batch):
    maps = [torch.randn(batch, c, k, k, requires_grad=True) for c, k in ((24, 10), (32, 5), (16, 3), (16, 1))]
    value = LipschitzLoss(gap)(maps, [x.detach() for x in maps])
    assert value.item() == pytest.approx(0, abs=1e-8)
