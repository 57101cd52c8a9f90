"""Pure tensor functions: they need torch and nothing else."""

from .lipschitz import (
    layer_norms,
    lipschitz_gap,
    local_lipschitz,
    product_bound,
    spectral_norm,
    transmitting_matrix,
    transmitting_norm,
    transmitting_norms,
)
from .logits import binary_kd_divergence, kd_divergence

__all__ = [
    'binary_kd_divergence',
    'kd_divergence',
    'layer_norms',
    'lipschitz_gap',
    'local_lipschitz',
    'product_bound',
    'spectral_norm',
    'transmitting_matrix',
    'transmitting_norm',
    'transmitting_norms',
]
