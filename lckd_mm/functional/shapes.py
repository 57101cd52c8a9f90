"""Shared helpers: shape checks, and means that are 0 instead of nan for an empty batch."""

from torch import Tensor


def check_rank(who: str, x: Tensor, least: int, layout: str) -> None:
    """Raise ValueError for fewer than ``least`` dimensions, or a dimension of size 0 other than the batch."""
    if x.dim() < least or not x.shape[1:].numel():
        raise ValueError(f'{who}: expected {layout}, got shape {tuple(x.shape)}')


def check_map(who: str, x: Tensor) -> None:
    """Raise ValueError unless the tensor is a map ``(B, C, H, W)`` with C, H and W above 0."""
    if x.dim() != 4 or not x.shape[1:].numel():
        raise ValueError(f'{who}: expected (B, C, H, W), got shape {tuple(x.shape)}')


def same_shape(who: str, student: Tensor, teacher: Tensor, advice: str = '') -> None:
    """Raise ValueError, with ``advice``, if the shapes differ; for maps the sentence names the connectors that help."""
    if student.shape == teacher.shape:
        return
    if not advice and student.dim() == teacher.dim() == 4:
        ways = []
        if student.shape[1] != teacher.shape[1]:
            ways.append("connector=dict(type='lckd_mm.ConvBN') maps the channels")
        if student.shape[2:] != teacher.shape[2:]:
            side = 'teacher_connector' if ways else 'connector'
            ways.append(f"{side}=dict(type='lckd_mm.MatchSize') resizes")
        advice = ', '.join(ways)
    raise ValueError(
        f'{who}: student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in shape'
        + (f'; {advice}' if advice else '')
    )


def mean(x: Tensor) -> Tensor:
    """Mean of all entries; 0 with zero gradient for an empty tensor, as on a rank without samples."""
    return x.mean() if x.numel() else x.sum()


def mean_square(who: str, student: Tensor, teacher: Tensor, advice: str = '') -> Tensor:
    """Mean squared difference of two tensors of equal shape; 0 if they are empty."""
    same_shape(who, student, teacher, advice)
    # Not torch's mse_loss, whose backward fails if the nets have different precisions.
    return mean((student - teacher).square())
