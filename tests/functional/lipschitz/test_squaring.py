"""The way of accelerators, taken on the CPU: repeated squaring of all pairs at once, and what it leaves over."""

import math
import re

import pytest
import torch
from spectra import DOUBLE, assert_equals_reference, assert_relative, maps_with_spectrum
from torch.utils._python_dispatch import TorchDispatchMode

from lckd_mm.functional import transmitting_norm, transmitting_norms
from lckd_mm.functional.lipschitz import transmitting


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def left_over(monkeypatch):
    """The pairs that squaring leaves to the iteration, by their channels."""
    pairs, iterate = [], transmitting._by_iteration

    def record(front, back, *args):
        pairs.append((front.shape[1], back.shape[1]))
        return iterate(front, back, *args)

    monkeypatch.setattr(transmitting, '_by_iteration', record)
    monkeypatch.setitem(transmitting._SQUARED, 'cpu', 1 << 60)
    return pairs


@pytest.mark.parametrize('channels', [(4, 9), (9, 4), (30, 20), (6, 6), (1, 5), (5, 1)])
@pytest.mark.parametrize(
    'sizes', [((6, 6), (6, 6)), ((8, 6), (4, 2)), ((4, 2), (8, 6)), ((7, 5), (3, 2)), ((2, 2), (1, 1))]
)
def test_any_of_the_three_sides_may_be_the_smallest(left_over, channels, sizes):
    assert_equals_reference([torch.randn(3, c, *size) for c, size in zip(channels, sizes)], rtol=1e-6, gradient=1e-3)
    assert not left_over


def test_pairs_of_one_side_and_of_others_in_a_chain(left_over):
    shapes = [(6, 16, 16), (12, 8, 8), (24, 4, 4), (6, 4, 4), (40, 3, 2)]
    assert_equals_reference([torch.randn(4, *shape) for shape in shapes], rtol=1e-6, gradient=1e-3)
    assert not left_over


@pytest.mark.parametrize('ratio', [0.5, 0.9, 0.97])
@pytest.mark.parametrize('channels', [(6, 9), (9, 6), (13, 15)])
def test_close_rivals_of_the_top(left_over, ratio, channels):
    assert_equals_reference(maps_with_spectrum([2.0, 2.0 * ratio, 0.5, 0.1], *channels, 4), rtol=1e-6, gradient=1e-3)
    assert not left_over


@pytest.mark.parametrize('ratio', [0.999, 1.0])
def test_a_crowded_top_of_the_spectrum_keeps_the_value(left_over, ratio):
    front, back = (x.float() for x in maps_with_spectrum([ratio**i for i in range(60)], 60, 64, 9))
    assert 1 - 1e-3 <= transmitting_norm(front, back).item() <= 1 + 1e-5


@pytest.mark.parametrize('scale', [0.0, 1e-15, 1e-10, 1e-8, 1e15, math.nan, math.inf])
def test_what_leaves_the_range_is_left_to_the_iteration(left_over, monkeypatch, scale):
    maps = [torch.randn(3, *shape) for shape in [(4, 6, 6), (5, 6, 6), (6, 3, 3), (3, 3, 3)]]
    for x in maps[:2]:
        x[1] *= scale
    maps = [x.requires_grad_() for x in maps]
    norms = transmitting_norms(maps)
    gradients = torch.autograd.grad(norms.nan_to_num().sum(), maps)
    assert left_over[0] == (4, 5) and (6, 3) not in left_over
    monkeypatch.setitem(transmitting._SQUARED, 'cpu', 0)
    expected = transmitting_norms(maps)
    torch.testing.assert_close(norms, expected, rtol=1e-6, atol=0, equal_nan=True)
    for a, b in zip(gradients, torch.autograd.grad(expected.nan_to_num().sum(), maps), strict=True):
        if math.isfinite(scale) and b[1].any():
            assert_relative(a[1], b[1], 1e-2)
        assert b[1].any() or not a[1].any()
        assert_relative(a[::2], b[::2], 1e-2)


def test_chunks_of_the_batch_give_the_same(left_over, monkeypatch):
    maps = [torch.randn(5, *shape).requires_grad_() for shape in [(4, 6, 6), (5, 6, 6), (8, 3, 3)]]
    expected = transmitting_norms(maps)
    gradients = torch.autograd.grad(expected.sum(), maps)
    monkeypatch.setattr(transmitting, '_CHUNK_ELSEWHERE', (6000, 6000))
    norms = transmitting_norms(maps)
    torch.testing.assert_close(norms, expected, rtol=1e-6, atol=0)
    for a, b in zip(torch.autograd.grad(norms.sum(), maps), gradients, strict=True):
        assert_relative(a, b, 1e-5)
    assert not left_over


def test_large_products_and_float64_are_left_to_the_iteration(left_over, monkeypatch):
    maps = [torch.randn(2, *shape) for shape in [(4, 6, 6), (5, 6, 6), (50, 6, 6)]]
    monkeypatch.setitem(transmitting._SQUARED, 'cpu', 8000)
    transmitting_norms(maps)
    assert left_over == [(5, 50)]
    left_over.clear()
    transmitting_norms([x.to(DOUBLE) for x in maps])
    assert left_over == [(4, 5), (5, 50)]


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(left_over, dtype):
    maps = [torch.randn(2, *shape).to(dtype).requires_grad_() for shape in [(3, 4, 4), (5, 4, 4), (4, 2, 2)]]
    norms = transmitting_norms(maps)
    assert torch.equal(norms, transmitting_norms([x.detach().float() for x in maps]))
    assert all(g.dtype == dtype for g in torch.autograd.grad(norms.sum(), maps))


def test_an_empty_batch_gives_an_empty_result(left_over):
    assert transmitting_norms([torch.randn(0, 3, 4, 4), torch.randn(0, 5, 2, 2)]).shape == (1, 0)


class Launches(TorchDispatchMode):
    """Counts operations that are a kernel on an accelerator: all but views and allocations."""

    FREE = re.compile(
        r'(new_)?empty.*|.*view|alias|as_strided|detach|expand|permute|promote_types|select|slice|split.*|(un)?squeeze|'
        r't|transpose|unbind|_local_scalar_dense|_reshape_alias'
    )

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not self.FREE.fullmatch(func._schema.name.removeprefix('aten::'))
        return func(*args, **kwargs or {})


def test_three_pairs_start_few_kernels(left_over):
    """Both nets of a step, forward and backward; the Lanczos iteration would start some 2,000."""
    shapes = [(16, 16, 16), (32, 8, 8), (64, 4, 4), (64, 4, 4)]
    student, teacher = ([torch.randn(4, *shape) for shape in shapes] for _ in range(2))
    student = [x.requires_grad_() for x in student]

    def step() -> None:
        with torch.no_grad():
            target = transmitting_norms(teacher)
        torch.autograd.grad(transmitting_norms(student), student, target)

    step()  # fills the caches of starts and pooling matrices
    with Launches() as launches:
        step()
    assert 100 < launches.count <= 165
    assert not left_over


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')
@pytest.mark.parametrize('scale', [1.0, 0.0, 1e-15, 1e15, math.nan])
@pytest.mark.parametrize('dtype', [torch.float16, torch.float32, DOUBLE])
def test_a_gpu_gives_what_the_cpu_gives(scale, dtype):
    maps = [torch.randn(4, *shape) for shape in [(24, 12, 8), (40, 6, 4), (16, 5, 3), (8, 5, 3)]]
    if dtype != torch.float16:
        for x in maps[:2]:
            x[1] *= scale
    results = []
    for device in ('cpu', 'cuda'):
        leaves = [x.to(device, dtype).requires_grad_() for x in maps]
        norms = transmitting_norms(leaves)
        gradients = torch.autograd.grad(norms.nan_to_num().sum(), leaves)
        results.append((norms.cpu(), [g.cpu().double()[::2] for g in gradients]))
    rtol = 1e-9 if dtype == DOUBLE else 1e-5
    torch.testing.assert_close(results[1][0], results[0][0], rtol=rtol, atol=0, equal_nan=True)
    for a, b in zip(results[1][1], results[0][1], strict=True):
        assert_relative(a, b, 1e-2)
