"""The Lipschitz core: transmitting matrices, their norms, and gaps between them."""

from .gaps import GAPS, lipschitz_gap
from .transmitting import transmitting_matrix, transmitting_norm, transmitting_norms

__all__ = ['GAPS', 'lipschitz_gap', 'transmitting_matrix', 'transmitting_norm', 'transmitting_norms']
