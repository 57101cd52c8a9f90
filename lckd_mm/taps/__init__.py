"""Taps: addresses of intermediate tensors, read during one forward pass, and checked.

An address is ``path[item]@port#call``: the module's path in the model, then, each optional,

* ``[k]``: which element, of an output (or input) that is a tuple or list;
* ``@in``: the module's first input instead of its output; ``@preact``: the input of the activation that ends the
  module (a residual stage's output before its last ReLU, the feature that OFD and LONDON match);
* ``#k``: which call, of a module that runs several times in a forward (``#-1`` the last); ``#*`` all, as a list.
"""

from .address import Address
from .capture import LIST_ALL
from .modules import is_activation, is_norm, not_inplace
from .recording import FeatureTaps, Trace

__all__ = ['LIST_ALL', 'Address', 'FeatureTaps', 'Trace', 'is_activation', 'is_norm', 'not_inplace']
