"""The compiled iteration: its own numbers, what it leaves to torch's operations, and its threads."""

import math
import shutil
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spectra import DOUBLE, assert_equals_reference, maps_with_spectrum, reference_norm, threads

from lckd_mm.functional import transmitting_norm, transmitting_norms
from lckd_mm.functional.lipschitz import native, transmitting
from lckd_mm.functional.lipschitz.krylov import generic_start

compiled = pytest.mark.skipif(not native.available(), reason='lanczos.c is not compiled')


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def left_over(monkeypatch):
    """How many samples each call leaves to torch's operations."""
    counts, iterate = [], transmitting._iterated
    monkeypatch.setattr(transmitting, '_iterated', lambda x, *args: (counts.append(len(x)), iterate(x, *args))[1])
    return counts


def batch_with_spectrum(values, batch):
    n = len(values)
    return [torch.cat(maps) for maps in zip(*(maps_with_spectrum(values, n, n + 2, 8) for _ in range(batch)))]


def test_it_is_compiled_where_a_compiler_is():
    if not shutil.which('cc'):
        pytest.skip('there is no C compiler')
    assert native.available()


@compiled
@pytest.mark.parametrize('sizes', [
    ((8, 8), (4, 4), (2, 2)), ((12, 20), (4, 10), (4, 2)), ((13, 21), (7, 11), (4, 6)), ((5, 9), (9, 5), (3, 3)),
    ((33, 33), (17, 17), (17, 17)), ((1, 7), (7, 1), (1, 1)),
])  # fmt: skip
@pytest.mark.parametrize('pooled', [0, 1 << 30])
def test_every_way_of_pooling(monkeypatch, left_over, sizes, pooled):
    monkeypatch.setattr(native, '_POOLED', pooled)
    assert_equals_reference(
        [torch.randn(3, c, *size) + 0.5 for c, size in zip((13, 6, 21), sizes)], rtol=3e-6, gradient=3e-3
    )
    assert not left_over


@compiled
@given(
    batch=st.integers(1, 5),
    shapes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 20), st.integers(1, 20)), min_size=2, max_size=3),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_any_shapes(batch, shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(batch, *shape, generator=generator) for shape in shapes]
    torch.testing.assert_close(
        transmitting_norms(maps).double(),
        torch.stack([reference_norm(a.double(), b.double()) for a, b in pairwise(maps)]),
        rtol=1e-3, atol=0,
    )  # fmt: skip


@compiled
@pytest.mark.parametrize('which', [0, 1])
def test_a_vector_that_one_start_has_no_share_of_is_found(which, left_over):
    channels, area = 20, 36
    starts = generic_start(2 * area, torch.empty(0)).view(2, area).double()
    values = torch.tensor([1.0, 0.8, *(0.1 * 0.8**i for i in range(9))], dtype=DOUBLE)
    first = torch.linalg.qr(torch.stack([starts[which], torch.randn(area, dtype=DOUBLE)], 1)).Q[:, 1:]
    back = torch.linalg.qr(torch.cat([first, torch.randn(area, len(values) - 1, dtype=DOUBLE)], 1)).Q.T
    front = torch.linalg.qr(torch.randn(channels, len(values), dtype=DOUBLE)).Q @ (values[:, None] * back)
    maps = [x.reshape(1, -1, 6, 6).expand(2, -1, -1, -1).float().contiguous() for x in (front, back)]
    torch.testing.assert_close(area * transmitting_norm(*maps), torch.ones(2), rtol=1e-5, atol=0)
    assert not left_over


@compiled
@pytest.mark.parametrize('strength', [1.0, 10.0, 30.0])
def test_maps_whose_strongest_patterns_have_nothing_in_common(strength):
    """What is left of the products with them is small, and rounding weighs more."""
    patterns = torch.linalg.qr(torch.randn(256, 2, dtype=DOUBLE)).Q.T
    maps = []
    for pattern in patterns:
        noise = torch.randn(4, 24, 256, dtype=DOUBLE) / 16
        noise -= noise @ patterns.T @ patterns
        maps.append((noise + strength * torch.randn(4, 24, 1, dtype=DOUBLE) * pattern).view(4, 24, 16, 16).float())
    expected = reference_norm(*(x.double() for x in maps))
    torch.testing.assert_close(transmitting_norm(*maps).double(), expected, rtol=1e-4, atol=0)


@compiled
def test_no_rival_is_taken_for_the_first(left_over):
    """Of flat spectra, which an iteration from one start gets wrong in about one of 2,000 samples."""
    errors = []
    for seed in range(600):
        generator = torch.Generator().manual_seed(seed)
        shapes = torch.randint(1, 41, (2, 3), generator=generator).tolist()
        maps = [torch.randn(8, c, 1 + h // 2, 1 + w // 2, generator=generator) for c, h, w in shapes]
        errors.append(transmitting_norm(*maps).double() / reference_norm(*(x.double() for x in maps)) - 1)
    assert torch.stack(errors).abs().max() < 1e-4
    assert sum(left_over) < 10


@compiled
@pytest.mark.parametrize('ratio', [0.0, 0.5, 0.9])
def test_a_known_spectrum(ratio, left_over):
    spectrum = [3.0, *(3 * ratio * 0.9**i for i in range(9))]
    assert_equals_reference(batch_with_spectrum(spectrum, 4), rtol=3e-6, gradient=1e-2)
    assert not left_over


@compiled
def test_samples_that_leave_the_range_are_left_to_torch(left_over):
    front, back = torch.randn(9, 8, 6, 6), torch.randn(9, 12, 3, 3)
    alone = transmitting_norm(front, back)
    factors = torch.tensor([1.0, 0.0, math.nan, 1e15, 1.0, 1e-15, math.inf, 1e-30, 1.0])
    torch.testing.assert_close(transmitting_norm(1e6 * front, back), 1e6 * alone, rtol=1e-5, atol=0)
    assert not left_over
    norms = transmitting_norm(front * factors[:, None, None, None], back)
    expected = alone * factors
    expected[6] = math.nan
    assert left_over == [6]
    torch.testing.assert_close(norms, expected, rtol=1e-5, atol=0, equal_nan=True)


@compiled
def test_samples_that_do_not_converge_are_left_to_torch(monkeypatch, left_over):
    maps = batch_with_spectrum([1 - i / 80 for i in range(40)], 4)
    easy = batch_with_spectrum([1.0] + [0.1] * 39, 4)
    mixed = [torch.cat(pair).float() for pair in zip(maps, easy)]
    monkeypatch.setattr(native, '_STEPS', (6, 6))
    norms = transmitting_norm(*mixed)
    assert left_over == [4]
    torch.testing.assert_close(norms, torch.ones(8), rtol=2e-3, atol=0)


@compiled
def test_the_result_does_not_depend_on_the_threads():
    front, back = torch.randn(7, 12, 9, 9).requires_grad_(), torch.randn(7, 5, 4, 4).requires_grad_()
    results = []
    for n in (1, 2, 4):
        with threads(n):
            norms = transmitting_norm(front, back)
            results.append((norms, *torch.autograd.grad(norms.sum(), (front, back))))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0]))


@compiled
@pytest.mark.parametrize('samples', [1, 2])
def test_fewer_samples_than_half_the_threads_are_left_to_torch(left_over, samples):
    maps = [torch.randn(samples, 4, 5, 5), torch.randn(samples, 6, 5, 5)]
    with threads(4):
        assert_equals_reference(maps, rtol=3e-6, gradient=3e-3)
    assert left_over == {1: [1, 1], 2: []}[samples]


@compiled
@pytest.mark.parametrize('change', [
    lambda x: x.bfloat16(), lambda x: x.half(), lambda x: x.contiguous(memory_format=torch.channels_last),
    lambda x: x.repeat_interleave(2, -1)[..., ::2],
])  # fmt: skip
@pytest.mark.parametrize('chunk', [1, 1 << 30])
def test_other_maps_are_brought_to_its_order_in_parts(monkeypatch, left_over, change, chunk):
    monkeypatch.setitem(transmitting._CHUNK, 'cpu', chunk)
    maps = [change(torch.randn(5, 6, 8, 8)), change(torch.randn(5, 9, 4, 4))]
    assert torch.equal(transmitting_norm(*maps), transmitting_norm(*(x.float().contiguous() for x in maps)))
    assert not left_over


def test_without_the_compiled_file_the_result_is_the_same(monkeypatch, left_over):
    maps = [torch.randn(4, 6, 8, 8), torch.randn(4, 9, 4, 4)]
    before = transmitting_norms(maps)
    monkeypatch.setattr(native, '_library', lambda: None)
    torch.testing.assert_close(transmitting_norms(maps), before, rtol=1e-5, atol=0)
    assert left_over[-1] == 4
