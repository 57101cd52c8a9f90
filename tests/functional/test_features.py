import math

import pytest
import torch

from lckd_mm.functional import bn_margin

DOUBLE = torch.float64


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
