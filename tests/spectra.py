"""Matrices and maps with a known spectrum, and the exact answer."""

import torch

from lckd_mm.functional import transmitting_matrix

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
