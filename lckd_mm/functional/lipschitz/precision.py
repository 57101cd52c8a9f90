"""Precision of the Lipschitz core: at least float32, whatever the caller's settings."""

import contextlib
from collections.abc import Iterator
from functools import reduce

import torch
from torch import Tensor

# Backends in which torch may compute float32 products at lower precision. Before torch 2.9 there is one switch for all.
_BACKENDS = [
    part
    for backend, names in ((torch.backends.cuda, ['matmul']), (torch.backends.cudnn, ['conv']))
    for part in (getattr(backend, name, None) for name in names)
    if hasattr(part, 'fp32_precision')
]
if _BACKENDS:
    _BACKENDS += [torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv]


def wide_type(*tensors: Tensor) -> torch.dtype:
    """The dtype to compute in: the widest of the tensors', at least float32; ValueError for complex tensors."""
    dtype = reduce(torch.promote_types, (x.dtype for x in tensors), torch.float32)
    if dtype.is_complex:
        raise ValueError(f'Lipschitz core: expected real tensors, got {", ".join(str(x.dtype) for x in tensors)}')
    return dtype


@contextlib.contextmanager
def full_precision(like: Tensor) -> Iterator[None]:
    """Disable autocast, and TF32 and bfloat16 inside float32 products and convolutions."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.autocast(like.device.type, enabled=False))
        for backend in _BACKENDS:
            before = backend.fp32_precision
            if before != 'ieee':
                backend.fp32_precision = 'ieee'
                stack.callback(setattr, backend, 'fp32_precision', before)
        if not _BACKENDS:
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision('highest')
            stack.callback(setattr, torch.backends.cudnn, 'allow_tf32', torch.backends.cudnn.allow_tf32)
            torch.backends.cudnn.allow_tf32 = False
        yield


def inverse_scale(x: Tensor, dim: int | tuple[int, ...] = -1) -> Tensor:
    """A power of two that scales the largest entry along ``dim`` to the order of one without rounding; 1 for zeros.

    Dimensions are kept. The factor stays within the dtype's range, so entries near the ends of the range may end up
    away from one.
    """
    exponent = torch.frexp(torch.linalg.vector_norm(x, torch.inf, dim, keepdim=True)).exponent
    limit = 126 if x.dtype == torch.float32 else 1022
    return torch.exp2(-exponent.clamp(-limit, limit).to(x.dtype))
