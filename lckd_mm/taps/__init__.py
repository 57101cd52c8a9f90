"""Taps: addresses of intermediate tensors, which are read during one forward pass and checked.

An address is ``path[item]@port#call``: the module's path in the model, followed by optional parts:

* ``[k]``: the element to take if the output (or input) is a tuple or list, ``[k][l]`` if that is one, too;
* ``@in``: the module's first input instead of its output; ``@preact``: the input of the activation that ends the
  module (a residual stage's output before its last ReLU, the feature that OFD and LONDON match);
* ``#k``: the call to take if the module runs several times in a forward (``#-1`` the last); ``#*`` all, as a list.
"""

from .address import Address
from .capture import LIST_ALL, TapError
from .modules import is_activation, is_norm, not_inplace
from .recording import PASSES, FeatureTaps, Pass, Trace

__all__ = [
    'LIST_ALL',
    'PASSES',
    'Address',
    'FeatureTaps',
    'Pass',
    'TapError',
    'Trace',
    'is_activation',
    'is_norm',
    'not_inplace',
]
