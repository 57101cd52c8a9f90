import math

import pytest
import torch

from lckd_mm.functional import lipschitz_gap
from lckd_mm.functional.lipschitz import GAPS

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


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
    with pytest.raises(ValueError, match=r"'ratio'.*absolute, relative, log"):
        lipschitz_gap(torch.ones(1), torch.ones(1), 'ratio')
