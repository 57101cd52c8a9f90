"""Shared helpers: shape checks, and means that are 0 instead of nan for an empty batch."""

from torch import Tensor


def check_rank(who: str, x: Tensor, least: int, layout: str) -> None:
    """Raise ValueError for fewer than ``least`` dimensions, or a dimension of size 0 other than the batch."""
    if x.dim() < least:
        raise ValueError(f'{who}: expected {layout}, got shape {tuple(x.shape)}')
    if not x.shape[1:].numel():
        raise ValueError(f'{who}: expected {layout}, got an empty one of shape {tuple(x.shape)}')


def check_map(who: str, x: Tensor) -> None:
    """Raise ValueError unless the tensor is a map ``(B, C, H, W)`` with C, H and W above 0."""
    if x.dim() != 4:
        raise ValueError(f'{who}: expected (B, C, H, W), got shape {tuple(x.shape)}')
    check_rank(who, x, 4, '(B, C, H, W)')


def mean(x: Tensor) -> Tensor:
    """Mean of all entries; 0 with zero gradient for an empty tensor, as on a rank without samples."""
    return x.mean() if x.numel() else x.sum()


def mean_square(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two tensors of equal shape; 0 if they are empty."""
    # Not torch's mse_loss, whose backward fails if the nets have different precisions.
    return mean((student - teacher).square())
