"""The Lipschitz core: transmitting matrices and their norms, gaps, and estimators for comparison."""

from .estimators import local_lipschitz
from .gaps import GAPS, lipschitz_gap
from .graph import graph_bound, product_bound
from .spectral import spectral_norm
from .transmitting import transmitting_matrix, transmitting_norm, transmitting_norms

__all__ = [
    'GAPS',
    'graph_bound',
    'lipschitz_gap',
    'local_lipschitz',
    'product_bound',
    'spectral_norm',
    'transmitting_matrix',
    'transmitting_norm',
    'transmitting_norms',
]
