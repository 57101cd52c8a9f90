"""Matrices and maps with a known spectrum, and the exact answer."""

from itertools import pairwise

import torch

from lckd_mm.functional import transmitting_matrix, transmitting_norms

DOUBLE = torch.float64


def with_spectrum(values, rows, cols):
    """A random matrix (rows, cols) with the given singular values, the rest 0."""
    u = torch.linalg.qr(torch.randn(rows, rows, dtype=DOUBLE)).Q[:, : len(values)]
    v = torch.linalg.qr(torch.randn(cols, cols, dtype=DOUBLE)).Q[:, : len(values)]
    return u @ torch.diag(torch.tensor(values, dtype=DOUBLE)) @ v.T


def maps_with_spectrum(values, c1, c2, size):
    """Maps (1, c1, size, size) and (1, c2, size, size) whose transmitting matrix has the given singular values."""
    area = size * size
    back = torch.linalg.qr(torch.randn(area, c2, dtype=DOUBLE)).Q.T
    front = with_spectrum(values, c1, c2) @ back * area
    return front.view(1, c1, size, size), back.reshape(1, c2, size, size)


def reference_norm(front, back):
    return torch.linalg.svdvals(transmitting_matrix(front, back))[..., 0]


def assert_relative(actual, expected, tolerance):
    error = torch.linalg.vector_norm(actual - expected) / torch.linalg.vector_norm(expected)
    assert error <= tolerance, f'relative error {error:.3g} > {tolerance:g}'


def assert_equals_reference(maps, rtol, gradient):
    """Values and gradients of a net's maps, in float32, against svdvals in float64; values without gradients, too."""
    maps = [x.detach().float().requires_grad_() for x in maps]
    wide = [x.detach().double().requires_grad_() for x in maps]
    weights = torch.rand(len(maps) - 1, len(maps[0]))
    norms, exact = transmitting_norms(maps), torch.stack([reference_norm(*pair) for pair in pairwise(wide)])
    torch.testing.assert_close(norms.double(), exact, rtol=rtol, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(transmitting_norms(maps), norms, rtol=1e-6, atol=0)
    expected = torch.autograd.grad((exact * weights).sum(), wide)
    for found, reference in zip(torch.autograd.grad((norms * weights).sum(), maps), expected, strict=True):
        assert_relative(found.double(), reference, gradient)
