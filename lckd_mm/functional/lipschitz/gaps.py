"""Gaps between the Lipschitz constants of two nets."""

from torch import Tensor

GAPS = ('absolute', 'relative', 'log')


def lipschitz_gap(student: Tensor, teacher: Tensor, gap: str = 'log', eps: float = 1e-6) -> Tensor:
    r"""Squared gap of two Lipschitz constants, elementwise.

    ``absolute`` :math:`(s - t)^2` (the authors' code), ``relative`` :math:`((s - t) / (t + \epsilon))^2`, ``log``
    :math:`(\ln(s + \epsilon) - \ln(t + \epsilon))^2`. If both constants are scaled by the same factor, the first is
    scaled by its square, and the last two do not change.

    Args:
        student: ``(...)``, >= 0. teacher: the same shape. eps: in the units of both.
    Returns:
        ``(...)``; finite for zeros on either side.
    Raises:
        ValueError: an unknown ``gap``.
    """
    if gap == 'absolute':
        return (student - teacher).square()
    if gap == 'relative':
        return ((student - teacher) / (teacher + eps)).square()
    if gap == 'log':
        return ((student + eps).log() - (teacher + eps).log()).square()
    raise ValueError(f'lipschitz_gap: unknown gap {gap!r}, expected one of {", ".join(GAPS)}')
