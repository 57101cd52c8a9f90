import pytest
import torch

from lckd_mm.functional import directional_gap, unit_gap

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_directional_gap_by_hand():
    student = torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 4.0]])  # moves by 1 and 2
    teacher = torch.tensor([[5.0, 5.0]]), torch.tensor([[5.0, 6.0]])  # by 0 and 1
    assert directional_gap(student, teacher, 0.5).item() == 4.0


def test_directional_gap_is_the_distance_of_the_jacobians_in_expectation():
    a, b = torch.randn(5, 8, dtype=DOUBLE), torch.randn(5, 8, dtype=DOUBLE)
    x, sigma = torch.randn(1, 8, dtype=DOUBLE), 0.3
    moved = x + sigma * torch.randn(200_000, 8, dtype=DOUBLE)
    gap = directional_gap((x @ a.T, moved @ a.T), (x @ b.T, moved @ b.T), sigma)
    assert gap.item() == pytest.approx((a - b).square().sum().item() / 5, rel=0.02)


def test_directional_gap_does_not_see_a_constant():
    student, teacher = torch.randn(2, 3, 4, dtype=DOUBLE), torch.randn(2, 3, 4, dtype=DOUBLE)
    expected = directional_gap(tuple(student), tuple(teacher), 1.0)
    torch.testing.assert_close(directional_gap(tuple(student + 7), tuple(teacher), 1.0), expected)


def test_directional_gap_gradcheck():
    inputs = [torch.randn(2, 3, dtype=DOUBLE, requires_grad=True) for _ in range(4)]
    assert torch.autograd.gradcheck(lambda a, b, c, d: directional_gap((a, b), (c, d), 0.7), inputs)


def test_directional_shapes_that_differ_raise():
    with pytest.raises(ValueError, match=r'student \(1, 2\) and teacher \(1, 3\) differ in shape'):
        directional_gap((torch.zeros(1, 2),) * 2, (torch.zeros(1, 3),) * 2, 1.0)


def test_unit_gap_by_hand():
    student = torch.tensor([[3.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
    teacher = torch.tensor([[9.0, 0.0], [5.0, 0.0], [-1.0, 0.0]])  # along, across, against
    assert unit_gap(student, teacher).item() == pytest.approx((0 + 2 + 4) / 3)


def test_unit_gap_has_no_scale_and_is_twice_one_minus_the_cosine():
    a, b = torch.randn(4, 3, 5, dtype=DOUBLE), torch.randn(4, 3, 5, dtype=DOUBLE)
    cosine = torch.cosine_similarity(a.flatten(1), b.flatten(1)).mean()
    torch.testing.assert_close(unit_gap(1e3 * a, 1e-3 * b), 2 - 2 * cosine)


def test_unit_gap_gradcheck_and_zero():
    a, b = (torch.randn(2, 3, dtype=DOUBLE, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(unit_gap, (a, b))
    assert torch.autograd.gradgradcheck(unit_gap, (a, b))
    zero = torch.zeros(1, 3, requires_grad=True)
    value = unit_gap(zero, torch.ones(1, 3))
    assert value.item() == pytest.approx(1.0)
    value.backward()
    assert torch.isfinite(zero.grad).all()
