"""Gaps between the Lipschitz constants of two nets."""

from torch import Tensor

GAPS = ('absolute', 'relative', 'log')


def lipschitz_gap(student: Tensor, teacher: Tensor, gap: str = 'log', eps: float = 1e-6) -> Tensor:
    r"""Squared gap of two Lipschitz constants, elementwise.

    ``absolute`` :math:`(s - t)^2` (the authors' code), ``relative`` :math:`((s - t) / (t + \epsilon))^2`, ``log``
    :math:`(\ln(s + \epsilon) - \ln(t + \epsilon))^2`. The last two do not depend on the unit of the features when
    both nets' are scaled alike, which the first does with its square.

    Args:
        student: ``(...)`` not negative. teacher: the same shape. eps: in the units of both.
    Returns:
        ``(...)``; finite for zeros on either side.
    Raises:
        ValueError: for an unknown ``gap``.
    """
    if gap == 'absolute':
        return (student - teacher).square()
    if gap == 'relative':
        return ((student - teacher) / (teacher + eps)).square()
    if gap == 'log':
        return ((student + eps).log() - (teacher + eps).log()).square()
    raise ValueError(f'lipschitz_gap: unknown gap {gap!r}, expected one of {", ".join(GAPS)}')
