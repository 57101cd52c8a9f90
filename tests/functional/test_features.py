import math

import pytest
import torch

from lckd_mm.functional import (
    activation_boundary,
    attended_distance,
    attention_map,
    bn_margin,
    channel_divergence,
    factor_distance,
    margin_relu,
    partial_l2,
)

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# ---- partial_l2, margin_relu


def test_partial_l2_by_hand():
    #                     both below   student above   teacher positive   both positive
    student = torch.tensor([-3.0, -1.0, -4.0, 2.0]).view(1, 4, 1, 1)
    teacher = torch.tensor([-2.0, -2.0, 1.0, 5.0]).view(1, 4, 1, 1)
    assert partial_l2(student, teacher).flatten().tolist() == [0.0, 1.0, 25.0, 9.0]


def test_partial_l2_is_the_whole_distance_to_a_positive_teacher():
    student, teacher = torch.randn(2, 3, 4, 4), torch.rand(2, 3, 4, 4) + 0.1
    assert torch.equal(partial_l2(student, teacher), (student - teacher).square())


def test_partial_l2_has_no_gradient_where_the_relu_hides_the_difference():
    student = torch.tensor([-3.0, -1.0]).view(1, 2, 1, 1).requires_grad_()
    partial_l2(student, torch.full((1, 2, 1, 1), -2.0)).sum().backward()
    assert student.grad.flatten().tolist() == [0.0, 2.0]


def test_partial_l2_gradcheck():
    student, teacher = torch.randn(2, 3, 2, 2, dtype=DOUBLE, requires_grad=True), torch.randn(2, 3, 2, 2, dtype=DOUBLE)
    assert torch.autograd.gradcheck(partial_l2, (student, teacher))


def test_margin_relu_by_hand():
    x = torch.tensor([[-3.0, -1.0, 2.0], [-3.0, -1.0, 2.0]])[None]  # two channels, three positions
    expected = [[-2.0, -1.0, 2.0], [-0.5, -0.5, 2.0]]
    assert margin_relu(x, torch.tensor([-2.0, -0.5]))[0].tolist() == expected
    assert torch.equal(margin_relu(torch.ones(1, 2, 3, 3), torch.zeros(2)), torch.ones(1, 2, 3, 3))


# ---- bn_margin


def test_margin_of_a_standard_normal_by_hand():
    # E[x | x < 0] of N(0, 1) is -sqrt(2 / pi).
    margin = bn_margin(torch.ones(1, dtype=DOUBLE), torch.zeros(1, dtype=DOUBLE))
    assert margin.item() == pytest.approx(-math.sqrt(2 / math.pi), rel=1e-12)


@pytest.mark.parametrize(('gamma', 'beta'), [(1.0, 0.5), (2.0, -1.0), (-0.7, 0.3), (1.5, 2.0), (0.2, -3.0)])
def test_margin_is_the_mean_of_the_negative_part(gamma, beta):
    # The integral of x over the negative half of N(beta, gamma^2), by the trapezoid rule.
    s = abs(gamma)
    x = torch.linspace(-12 * s + min(beta, 0), 0, 400001, dtype=DOUBLE)
    density = torch.exp(-0.5 * ((x - beta) / s) ** 2)
    expected = torch.trapezoid(x * density, x) / torch.trapezoid(density, x)
    margin = bn_margin(torch.tensor([gamma], dtype=DOUBLE), torch.tensor([beta], dtype=DOUBLE))
    assert margin.item() == pytest.approx(expected.item(), rel=1e-6)


def test_margin_where_next_to_nothing_is_negative_is_three_deviations():
    # Phi(-3.2) = 0.0007 is below the threshold, Phi(-3.0) = 0.0013 above it.
    margin = bn_margin(torch.tensor([1.0, 1.0, 2.0]), torch.tensor([3.2, 3.0, 100.0]))
    assert margin[0] == -3
    assert -3 < margin[1] < 0
    assert margin[2] == -6


def test_margin_of_a_far_negative_channel_is_its_mean():
    margin = bn_margin(torch.tensor([1.0, 1e-3]), torch.tensor([-50.0, -2.0]))
    torch.testing.assert_close(margin, torch.tensor([-50.0, -2.0]))


def test_margin_of_a_constant_channel():
    assert bn_margin(torch.zeros(2), torch.tensor([-1.5, 2.0])).tolist() == [-1.5, 0.0]


def test_margin_keeps_the_type():
    assert bn_margin(torch.ones(3), torch.zeros(3)).dtype == torch.float32


# ---- attention_map


def test_attention_by_hand():
    x = torch.tensor([[[[3.0, 0.0]], [[0.0, 4.0]]]])  # means of squares 4.5 and 8
    expected = torch.tensor([[4.5, 8.0]]) / math.hypot(4.5, 8)
    torch.testing.assert_close(attention_map(x), expected)


def test_attention_has_unit_length_and_no_scale():
    x = torch.randn(3, 5, 4, 4)
    torch.testing.assert_close(attention_map(x).norm(dim=1), torch.ones(3))
    torch.testing.assert_close(attention_map(7 * x), attention_map(x))
    assert torch.equal(attention_map(torch.zeros(1, 2, 3, 3)), torch.zeros(1, 9))


def test_attention_gradcheck():
    assert torch.autograd.gradcheck(attention_map, torch.randn(2, 3, 2, 2, dtype=DOUBLE, requires_grad=True))


def test_attention_of_a_vector_raises():
    with pytest.raises(ValueError, match=r'expected \(B, C, H, W\), got shape \(2, 3\)'):
        attention_map(torch.zeros(2, 3))


# ---- activation_boundary


def test_activation_boundary_by_hand():
    student = torch.tensor([2.0, 0.5, -1.0, -2.0, 0.5]).view(1, 5, 1, 1)
    teacher = torch.tensor([1.0, 1.0, 1.0, -1.0, 0.0]).view(1, 5, 1, 1)
    assert activation_boundary(student, teacher).flatten().tolist() == [0.0, 0.25, 4.0, 0.0, 2.25]
    assert activation_boundary(student, teacher, margin=3.0).flatten().tolist() == [1.0, 6.25, 16.0, 1.0, 12.25]


def test_activation_boundary_sees_signs_only():
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert torch.equal(activation_boundary(student, teacher), activation_boundary(student, 10 * teacher))


def test_activation_boundary_gradcheck():
    student, teacher = torch.randn(2, 3, 2, 2, dtype=DOUBLE, requires_grad=True), torch.randn(2, 3, 2, 2, dtype=DOUBLE)
    assert torch.autograd.gradcheck(activation_boundary, (student, teacher))


# ---- factor_distance, attended_distance


def test_factor_distance_by_hand():
    student, teacher = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 5.0]])
    # (|0.6 - 1| + |0.8 - 0| + 0 + 0) / 4
    assert factor_distance(student, teacher).item() == pytest.approx(0.3)


def test_factor_distance_has_no_scale():
    student, teacher = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    torch.testing.assert_close(factor_distance(7 * student, teacher), factor_distance(student, 0.1 * teacher))
    assert factor_distance(student, 3 * student).item() == pytest.approx(0, abs=1e-7)


def test_factor_distance_gradcheck():
    student, teacher = torch.randn(2, 3, 2, 2, dtype=DOUBLE, requires_grad=True), torch.randn(2, 3, 2, 2, dtype=DOUBLE)
    assert torch.autograd.gradcheck(factor_distance, (student, teacher))


def test_attended_distance_by_hand():
    student = torch.tensor([[[[1.0, 3.0]], [[0.0, 0.0]]]])
    teacher = torch.tensor([[[[0.0, 0.0]], [[2.0, 0.0]]]])
    # Mean squares 5 and 2 of the two channels.
    assert attended_distance(student, teacher, torch.tensor([[0.25, 0.75]])).item() == 2.75
    even = torch.full((1, 2), 0.5)
    torch.testing.assert_close(attended_distance(student, teacher, even), (student - teacher).square().mean())


def test_attended_distance_gradcheck():
    student, teacher = (torch.randn(2, 3, 2, 2, dtype=DOUBLE, requires_grad=True) for _ in range(2))
    attention = torch.rand(2, 3, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(attended_distance, (student, teacher, attention))


def test_channel_divergence_by_hand():
    # Two positions: the teacher's channel is even, the student's e^2 to 1, at temperature 2 e to 1.
    student, teacher = torch.tensor([[[[2.0, 0.0]]]]), torch.zeros(1, 1, 1, 2)
    p = 1 / (1 + math.exp(-1))
    expected = 4 * (0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1 - p)))
    assert channel_divergence(student, teacher, tau=2.0).item() == pytest.approx(expected, rel=1e-6)


def test_channel_divergence_does_not_see_what_is_added_to_a_channel():
    student, teacher = torch.randn(2, 3, 4, 4, dtype=DOUBLE), torch.randn(2, 3, 4, 4, dtype=DOUBLE)
    value = channel_divergence(student, teacher, 3.0)
    assert value.shape == (2, 3)
    torch.testing.assert_close(channel_divergence(student + torch.randn(2, 3, 1, 1), teacher, 3.0), value)
    assert channel_divergence(student, student).abs().max() < 1e-12


def test_channel_divergence_gradcheck():
    student, teacher = torch.randn(2, 3, 2, 2, dtype=DOUBLE, requires_grad=True), torch.randn(2, 3, 2, 2, dtype=DOUBLE)
    assert torch.autograd.gradcheck(channel_divergence, (student, teacher))


def test_attended_shapes_that_differ_raise():
    with pytest.raises(ValueError, match=r'student \(1, 2, 3, 3\) and teacher \(1, 2, 2, 2\) differ in shape'):
        attended_distance(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 2, 2), torch.ones(1, 2))


@pytest.mark.parametrize('function', [partial_l2, activation_boundary, factor_distance, channel_divergence])
def test_shapes_that_differ_raise(function):
    with pytest.raises(ValueError, match=r'student \(1, 2, 3, 3\) and teacher \(1, 3, 3, 3\) differ in shape'):
        function(torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3, 3))
