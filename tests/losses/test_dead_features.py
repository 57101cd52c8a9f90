"""Features that are zero, one constant or tiny: every loss and its gradient stay finite."""

import pytest
import torch

from lckd_mm import losses

OF_CHAINS = [*(losses.LipschitzLoss(gap) for gap in ('log', 'relative', 'absolute')), losses.FSPLoss()]
OF_PAIRS = [
    losses.OFDLoss(), losses.ABLoss(), losses.FitNetsLoss(), losses.ATLoss(), losses.CWDLoss(), losses.FTLoss(),
    losses.KDLoss(), losses.KDLoss(standardise=True), losses.RKDLoss(), losses.SPLoss(), losses.DISTLoss(),
    losses.CosineLoss(), losses.VIDLoss([3], [3]), losses.ReviewKDLoss([3], [3]),
    losses.MGDLoss(), losses.BCKDLoss(),
]  # fmt: skip
KINDS = dict(zero=lambda x: 0 * x, constant=lambda x: 0 * x + 0.7, tiny=lambda x: 1e-12 * x)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dead', ['student', 'teacher', 'both'])
@pytest.mark.parametrize('loss', [*OF_CHAINS, *OF_PAIRS], ids=lambda loss: type(loss).__name__)
def test_value_and_gradient_are_finite(loss, dead, kind):
    torch.manual_seed(0)
    student, teacher = ([torch.randn(2, 3, 4, 4), torch.randn(2, 3, 2, 2)] for _ in range(2))
    if dead != 'teacher':
        student = [KINDS[kind](x) for x in student]
    if dead != 'student':
        teacher = [KINDS[kind](x) for x in teacher]
    leaves = [x.requires_grad_() for x in student]
    value = loss(student, teacher) if loss in OF_CHAINS else loss(student[0], teacher[0])
    assert torch.isfinite(value)
    for gradient in torch.autograd.grad(value, leaves, allow_unused=True):
        assert gradient is None or torch.isfinite(gradient).all()


@pytest.mark.parametrize('value', [0.0, 0.1, 0.7, 1.0, -123.4])
@pytest.mark.parametrize(
    'loss', [losses.PKDLoss(), losses.KDLoss(standardise=True), losses.DISTLoss()], ids=lambda loss: type(loss).__name__
)
def test_what_is_constant_gets_no_gradient(loss, value):
    """The mean of equal values is not exact, so that their deviation is not 0, and its inverse is large."""
    torch.manual_seed(0)
    if isinstance(loss, losses.PKDLoss):
        student, teacher = torch.randn(2, 3, 20, 31), torch.randn(2, 3, 20, 31)
        student[:, 1] = value
    else:
        student, teacher = torch.full((4, 100), value), torch.randn(4, 100)
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(student, teacher), student)
    still = gradient[:, 1] if gradient.dim() == 4 else gradient
    assert still.abs().max() == 0
    assert gradient.dim() == 2 or 0 < gradient[:, 0].abs().max() < 1
