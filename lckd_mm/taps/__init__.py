"""Taps: addresses of intermediate tensors, read during one forward pass, and checked; see :mod:`.recording`."""

from .recording import LIST_ALL, Address, FeatureTaps, Trace, is_activation, is_norm, not_inplace

__all__ = ['LIST_ALL', 'Address', 'FeatureTaps', 'Trace', 'is_activation', 'is_norm', 'not_inplace']
