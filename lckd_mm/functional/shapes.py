"""What the functions share: checks of shapes, and a mean that an empty batch does not turn into nan."""

from torch import Tensor


def check_rank(who: str, x: Tensor, least: int, layout: str) -> None:
    """ValueError where a tensor has fewer than ``least`` dimensions, or, but for the batch, one of size 0."""
    if x.dim() < least:
        raise ValueError(f'{who}: expected {layout}, got shape {tuple(x.shape)}')
    if not x.shape[1:].numel():
        raise ValueError(f'{who}: expected {layout}, got an empty one of shape {tuple(x.shape)}')


def check_map(who: str, x: Tensor) -> None:
    """ValueError where a tensor is no map ``(B, C, H, W)``, or, but for the batch, empty."""
    if x.dim() != 4:
        raise ValueError(f'{who}: expected (B, C, H, W), got shape {tuple(x.shape)}')
    check_rank(who, x, 4, '(B, C, H, W)')


def mean(x: Tensor) -> Tensor:
    """The mean of all entries; 0, with a gradient of zeros, where there is none, as on a rank without samples."""
    return x.mean() if x.numel() else x.sum()


def mean_square(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared distance of two tensors of one shape; 0 where they are empty."""
    # Not torch's mse_loss, whose gradient refuses nets of two precisions.
    return mean((student - teacher).square())
