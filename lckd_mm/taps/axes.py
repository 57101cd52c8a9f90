"""Axes: which axis of a tapped tensor holds the batch and which the channels, decided once, when its net is traced.

Whatever the host's order, a traced tap gives one of three layouts: a map (B, C, H, W), tokens (B, N, C), or a vector
(B, C). The layer that computed the tensor tells its channels: a convolution has them on axis 1, a linear layer on the
last one, and a later permutation keeps their number. Where two axes have this size, the channels are marked once.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .modules import is_norm


class Layer(NamedTuple):
    """A call of a layer with channels: its path, the number of the call, its output's shape, and its channels' axis."""

    path: str
    call: int
    shape: tuple[int, ...]
    axis: int


def channel_axis(module: nn.Module, output: Any) -> int | None:
    """The axis of a layer's channels in its output; None if the layer is of no known kind."""
    if not isinstance(output, Tensor) or output.dim() < 2:
        return None
    last = output.dim() - 1
    if isinstance(module, nn.Linear):
        return last
    if isinstance(module, nn.LayerNorm) or type(module).__name__ == 'RMSNorm':
        # Hosts derive norms of maps from LayerNorm: LayerNorm2d, or data_format='channels_first'.
        first = '2d' in type(module).__name__ or 'first' in str(getattr(module, 'data_format', ''))
        width = module.weight.shape[-1] if getattr(module, 'weight', None) is not None else output.shape[last]
        return 1 if first or output.shape[last] != width else last
    # Deformable convolutions share no base class with torch's.
    return 1 if (is_norm(module) or 'Conv' in type(module).__name__) and not any(module.children()) else None


def find_channels(
    shapes: Sequence[tuple[int, ...]], layers: Sequence[Layer], marks: Callable[[Layer], Tensor | None]
) -> int | None:
    """The axis of the channels of tensors of these shapes; None if it is unknown.

    Args:
        shapes: of all levels of a tap, of one image. layers: those that ran until the last level was read, in order.
        marks: runs the net again with one channel of a layer's output marked by nan (:func:`marked`), and gives the
            last level; needed only where the sizes do not tell the axis.
    """
    dims = len(shapes[0])
    if dims == 2:
        return 1
    if dims not in (3, 4) or any(len(shape) != dims for shape in shapes):
        return None
    axes = [1, 3] if dims == 4 else [axis for axis in range(3) if axis != batch_axis(shapes)]
    latest = list(reversed(layers))
    # A module that returns several tensors may have run other layers since: as many numbers show which one it was. A
    # deeper map may have as many, too, so that layers of the very shape are asked as well.
    exact = [layer for layer in latest if layer.shape == tuple(shapes[-1]) and layer.axis in axes]
    likely = {}
    for layer in latest:
        width, numbers = layer.shape[layer.axis], math.prod(layer.shape)
        options = [axis for axis in axes if all(shape[axis] == width for shape in shapes)]
        if options and numbers == math.prod(shapes[-1]) and (len(likely) < 3 or layer in exact[:3]):
            likely[layer] = options
    alike = [layer for layer in latest if len(layer.shape) == dims and layer.axis in axes]
    for layer in dict.fromkeys([*likely, *latest[:1], *alike[:1]]):
        options = likely.get(layer, axes)
        doubted = any(other.axis not in options for other in exact)
        if layer not in likely or len(options) > 1 or doubted:
            found = marks(layer)
            options = [] if found is None else [axis for axis in options if _is_marked(found, axis)]
        if len(options) == 1:
            return options[0]
    return alike[0].axis if alike[:1] == latest[:1] and alike else None


def _is_marked(x: Tensor, axis: int) -> bool:
    """Whether nan is at some places along this axis and not at others."""
    hit = x.isnan().movedim(axis, 0).flatten(1).any(1)
    return bool(hit.any() and not hit.all())


def batch_axis(shapes: Sequence[tuple[int, ...]]) -> int:
    """0, or 1 for tokens (N, B, C), of one image."""
    return int(all(len(shape) == 3 and shape[0] != 1 and shape[1] == 1 for shape in shapes))


def arrangement(shapes: Sequence[tuple[int, ...]], channels: int) -> tuple[int, ...] | None:
    """The permutation that gives a map, tokens or a vector; None if the axes stand so already."""
    dims, batch = len(shapes[0]), batch_axis(shapes)
    others = [axis for axis in range(dims) if axis not in (batch, channels)]
    order = (batch, *others, channels) if dims == 3 else (batch, channels, *others)
    return None if order == tuple(range(dims)) else order


@contextlib.contextmanager
def marked(model: nn.Module, layer: Layer) -> Iterator[None]:
    """Inside the ``with``, the first channel of this call's output is nan."""
    calls = 0

    def mark(_: nn.Module, args: tuple, output: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls - 1 != layer.call:
            return output
        output = output.clone()
        output.select(layer.axis, 0).fill_(torch.nan)
        return output

    with model.get_submodule(layer.path).register_forward_hook(mark):
        yield


def arranged(x: Tensor, order: tuple[int, ...] | None, inverse: bool = False) -> Tensor:
    """The tensor with its axes in this order, or from it back to the host's."""
    if order is None:
        return x
    return x.permute([order.index(axis) for axis in range(x.dim())] if inverse else order)
