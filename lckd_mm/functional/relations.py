"""Relations between the samples of a batch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def pairwise_distances(x: Tensor) -> Tensor:
    r"""Euclidean distances between samples, over their mean.

    .. math:: d_{ij} = \lVert x_i - x_j \rVert_2 / \mu, \qquad \mu = \text{the mean over the pairs } i \ne j

    Args:
        x: ``(B, ...)``, flattened.
    Returns:
        ``(B, B)``, without unit; zeros where all samples are the same. The gradient at a distance of 0 is 0.
    Source: Park et al., Relational Knowledge Distillation (RKD), CVPR 2019, eq. 6-7.
    Deviation: the authors' code takes the mean over distances above 0; so does this.
    """
    x = x.flatten(1)
    squares = x.square().sum(1)
    squared = (squares[:, None] + squares[None] - 2 * x @ x.T).clamp(min=0)
    # The distance of a sample to itself is 0 exactly, whatever rounding says.
    squared = squared * (1 - torch.eye(len(x), dtype=x.dtype, device=x.device))
    positive = squared > 1e-12 * squares.max()
    distances = torch.where(positive, torch.where(positive, squared, 1).sqrt(), 0)
    mean = distances.sum() / positive.sum().clamp(min=1)
    return distances / torch.where(mean > 0, mean, 1)


def pairwise_angles(x: Tensor) -> Tensor:
    r"""Cosines of the angles that every two samples make at a third.

    .. math:: \psi_{jik} = \langle e_{ji}, e_{jk} \rangle, \qquad e_{ji} = (x_i - x_j) / \lVert x_i - x_j \rVert_2

    Args:
        x: ``(B, ...)``, flattened.
    Returns:
        ``(B, B, B)``, the angle's sample first; 0 where two of the three coincide.
    Source: RKD, eq. 8. Deviation: none.
    """
    x = x.flatten(1)
    edges = F.normalize(x[None] - x[:, None], dim=2)
    return edges @ edges.mT
