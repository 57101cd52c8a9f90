"""The iteration of transmitting.py on a CPU, compiled from lanczos.c if the installation could build it.

Without it torch's operations do the same, more slowly.
"""

import ctypes
import importlib.machinery
import math
from ctypes import POINTER, Structure, byref, c_double, c_int32, c_int64, c_void_p
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from .krylov import generic_start, tolerance
from .squaring import Size

# Minimum and maximum number of directions per sample (two per block), and bytes per thread for them and for a pooled
# copy of a map.
_STEPS = (12, 32)
_ROOM = 512 << 10
_POOLED = 800 << 10


class _Side(Structure):
    _fields_ = [
        ('maps', c_void_p),
        *((name, c_int64) for name in ('channels', 'height', 'width')),
        ('row_bins', POINTER(c_int32)),
        ('column_bins', POINTER(c_int32)),
        ('pooled', c_int64),
    ]


class _Norms(Structure):
    _fields_ = [
        ('near', _Side),
        ('far', _Side),
        *((name, c_int64) for name in ('batch', 'height', 'width', 'blocks')),
        ('tolerance', c_double),
        *(
            (name, c_void_p)
            for name in ('start', 'sigma', 'u', 'v', 'near_positions', 'far_positions', 'doubt', 'work')
        ),
        *((name, c_int64) for name in ('work_size', 'thread', 'item')),
    ]


class _LowRank(Structure):
    _fields_ = [
        ('out', c_void_p),
        *((name, c_int64) for name in ('batch', 'channels', 'area', 'terms')),
        ('columns', c_void_p * 2),
        ('rows', c_void_p * 2),
        ('item', c_int64),
    ]


@lru_cache(maxsize=1)
def _library() -> tuple[ctypes.CDLL, c_void_p] | None:
    """The compiled library, and the function that starts threads of torch's own OpenMP library."""
    folder = Path(__file__).parent
    files = [folder / f'_lanczos{suffix}' for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    try:
        library = ctypes.CDLL(str(next(file for file in files if file.exists())))
        parallel = ctypes.cast(ctypes.CDLL(None).GOMP_parallel, c_void_p)
    except (StopIteration, OSError, AttributeError, TypeError):
        return None
    for function in (library.lckd_norms, library.lckd_low_rank):
        function.argtypes, function.restype = [c_void_p, c_void_p, c_int64], None
    return library, parallel


def available() -> bool:
    """Whether the compiled library exists and can use torch's threads."""
    return _library() is not None


def takes(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether this input is supported: on a CPU, in float32, with at least one sample per two threads.

    Each sample runs on one thread. Measured with two threads (docs/benchmarks.md): a single sample still takes 0.3 to
    1.2 times as long as torch's operations on both.
    """
    return (
        not torch.compiler.is_compiling()
        and x.device.type == 'cpu'
        and dtype == torch.float32
        and 2 * len(x) >= torch.get_num_threads()
        and available()
    )


def leading_triples(front: Tensor, back: Tensor, size: Size, keep: bool) -> tuple[tuple[Tensor, ...], Tensor]:
    """As ``_norms_of_pair`` of transmitting.py, plus ``(B,)`` bool: True for samples that did not pass the test.

    Error: as there, but each sample is tested by itself. Requires contiguous float32 maps for which :func:`takes` is
    True.
    """
    library, parallel = _library()
    batch, area = len(front), size[0] * size[1]
    # The iteration starts on the near side and reads it one more time, so it is the smaller one.
    near, far = (front, back) if _read(front, size) <= _read(back, size) else (back, front)
    sides = [_side(x, size) for x in (near, far)]
    floats = near.shape[1] + far.shape[1] + 2 * area
    blocks = math.ceil(min(near.shape[1], max(_STEPS[0], min(_STEPS[1], _ROOM // (4 * floats)))) / 2)
    room = (2 * blocks + 2) * floats + sum(_room(side, area) for side in sides)
    threads = min(torch.get_num_threads(), batch)
    start = generic_start(2 * area, near)
    doubt = near.new_empty(batch, dtype=torch.uint8)
    work = near.new_empty(threads, math.ceil(room / 16) * 16)
    sigma, kept = near.new_empty(batch), []
    if keep:
        kept = [near.new_empty(batch, n) for n in (near.shape[1], far.shape[1], area, area)]
    job = _Norms(
        *sides, batch, *size, blocks, tolerance(near.dtype), start.data_ptr(), sigma.data_ptr(),
        *([x.data_ptr() for x in kept] or [None] * 4), doubt.data_ptr(), work.data_ptr(), work.shape[1], 0, 0,
    )  # fmt: skip
    library.lckd_norms(byref(job), parallel, threads)
    if keep and near is back:
        kept = [kept[i] for i in (1, 0, 3, 2)]
    return (sigma, *kept), doubt.bool()


def low_rank(columns: list[Tensor], rows: list[Tensor], out: Tensor) -> None:
    """Write the sum of one or two outer products of ``(B, C)`` and ``(B, HW)`` to ``out``, ``(B, C, HW)``."""
    library, parallel = _library()
    columns, rows = ([x.contiguous() for x in vectors] for vectors in (columns, rows))
    pointers = [(c_void_p * 2)(*(x.data_ptr() for x in vectors)) for vectors in (columns, rows)]
    job = _LowRank(out.data_ptr(), *out.shape, len(columns), *pointers, 0)
    library.lckd_low_rank(byref(job), parallel, torch.get_num_threads())


def _side(x: Tensor, size: Size) -> _Side:
    side = _Side(x.data_ptr(), *x.shape[1:])
    if x.shape[2:] != size:
        side.row_bins, side.column_bins = (_bins(n, m) for n, m in zip(x.shape[2:], size))
        side.pooled = _read(x, size) < x[0].numel()
    return side


def _read(x: Tensor, size: Size) -> int:
    """Floats read per step and sample: those of the pooled map if it is small enough to be pooled in advance."""
    pooled = x.shape[1] * size[0] * size[1]
    return pooled if 4 * pooled <= _POOLED else x[0].numel()


def _room(side: _Side, area: int) -> int:
    """Floats that a side needs in addition to its vectors."""
    if not side.row_bins:
        return 0
    return side.width + (side.channels if side.pooled else 4) * area


@lru_cache(maxsize=256)
def _bins(n: int, m: int) -> ctypes.Array:
    """Start and end (exclusive) of the range of n positions that each of m positions averages."""
    return (c_int32 * (2 * m))(*(k for i in range(m) for k in (i * n // m, -((i + 1) * n // -m))))
