"""What every function of the Lipschitz core holds to: at least float32, whatever the surroundings ask for."""

import contextlib
from collections.abc import Iterator
from functools import reduce

import torch
from torch import Tensor


def wide_type(*tensors: Tensor) -> torch.dtype:
    """The type to compute in: the widest of the tensors', at least float32."""
    return reduce(torch.promote_types, (x.dtype for x in tensors), torch.float32)


@contextlib.contextmanager
def full_precision(like: Tensor) -> Iterator[None]:
    """No autocast, and no TF32 or bfloat16 inside float32 products."""
    before = torch.get_float32_matmul_precision()
    with torch.autocast(like.device.type, enabled=False):
        if before == 'highest':
            yield
            return
        torch.set_float32_matmul_precision('highest')
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


def inverse_scale(x: Tensor, dim: int | tuple[int, ...] = -1) -> Tensor:
    """A power of two that brings the largest entry along ``dim`` below 1, exactly; 1 for zeros. Dimensions are kept."""
    exponent = torch.frexp(torch.linalg.vector_norm(x, torch.inf, dim, keepdim=True)).exponent
    return torch.exp2(-exponent.to(x.dtype))


def refuse_second_derivative() -> None:
    """Raise RuntimeError inside a backward pass under ``create_graph=True``.

    Gradients are recorded in a backward pass exactly where that asked for it. The singular vectors are constants
    there, so that the graph would be wrong in silence.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            'spectral_norm, transmitting_norm: their gradient cannot be differentiated again (create_graph=True); take '
            'this term out of what is differentiated twice, or use torch.linalg.svdvals'
        )
