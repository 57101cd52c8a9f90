"""Pure tensor functions: they need torch and nothing else."""

from .lipschitz import lipschitz_gap, spectral_norm, transmitting_matrix, transmitting_norm
from .logits import binary_kd_divergence, kd_divergence

__all__ = [
    'binary_kd_divergence',
    'kd_divergence',
    'lipschitz_gap',
    'spectral_norm',
    'transmitting_matrix',
    'transmitting_norm',
]
