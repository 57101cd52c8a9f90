"""Relations between the samples of a batch."""

import torch
from torch import Tensor

from .shapes import check_rank


def pairwise_distances(x: Tensor) -> Tensor:
    r"""Euclidean distances between samples, divided by their mean.

    .. math:: d_{ij} = \lVert x_i - x_j \rVert_2 / \mu, \qquad \mu = \text{the mean over the pairs } i \ne j

    Args:
        x: ``(B, ...)``, flattened.
    Returns:
        ``(B, B)``, without unit; zeros if all samples are equal. The gradient at a distance of 0 is 0.
    Source: Park et al., Relational Knowledge Distillation (RKD), CVPR 2019, eq. 6-7.
    Deviation: the mean is over distances above 0, as in the authors' code.
    """
    check_rank('pairwise distances', x, 2, '(B, ...)')
    x = x.flatten(1)
    # The cheaper matrix-product mode loses all digits of distances that are small relative to the features.
    distances = torch.cdist(x, x, compute_mode='donot_use_mm_for_euclid_dist')
    mean = distances.sum() / (distances > 0).sum().clamp(min=1)
    return distances / torch.where(mean > 0, mean, 1)


def pairwise_angles(x: Tensor) -> Tensor:
    r"""Cosines of the angles that every two samples form at a third.

    .. math:: \psi_{jik} = \langle e_{ji}, e_{jk} \rangle, \qquad e_{ji} = (x_i - x_j) / \lVert x_i - x_j \rVert_2

    Args:
        x: ``(B, ...)``, flattened.
    Returns:
        ``(B, B, B)``, with the vertex first; 0, with zero gradient, where two of the three coincide (closer than 1e-5
        times the largest distance in the batch).
    Source: RKD, eq. 8. Deviation: none.
    """
    check_rank('pairwise angles', x, 2, '(B, ...)')
    if not len(x):
        return x.new_zeros(0, 0, 0)
    x = x.flatten(1)
    edges = x[None] - x[:, None]
    squares = edges.square().sum(2, keepdim=True)
    apart = squares > 1e-10 * squares.max()
    edges = torch.where(apart, edges / torch.where(apart, squares, 1).sqrt(), 0)
    return edges @ edges.mT
