"""Upper bounds of Lipschitz constants: along the computation graph, and of a chain of layers, with a gradient."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from .constants import local_lipschitz, steepest
from .lipschitz.precision import full_precision, wide_type

#: A number, or a function that computes it to a given tolerance.
Factor = float | Callable[[float], float]

# Largest slopes; those of SiLU, GELU and hardswish exceed 1.
_SLOPES = {'sigmoid': 0.25, 'hardsigmoid': 1 / 6, 'silu': 1.0998393194, 'gelu': 1.1289931, 'hardswish': 1.5}
# Constant 1: slopes of at most 1, and operations that select or reorder entries.
_UNIT = {
    *('relu', 'hardtanh', 'clamp', 'clamp_min', 'clamp_max', 'tanh', 'softplus', 'abs', 'neg', 'alias', 'clone'),
    *('detach', 'view', '_unsafe_view', '_reshape_alias', 'permute', 'transpose', 't', 'slice', 'select', 'squeeze'),
    *('unsqueeze', '_to_copy', 'split', 'split_with_sizes', 'unbind'),
}
# These depend on the argument's shape, not on its values.
_FRESH = {
    *('new_ones', 'new_zeros', 'new_empty', 'new_full', 'ones_like', 'zeros_like', 'empty_like', 'full_like'),
    *('rand_like', 'randn_like', 'new_empty_strided'),
}
# Linear in the first argument: the norm of the operator is measured.
_LINEAR = {
    *('avg_pool1d', 'avg_pool2d', 'avg_pool3d', '_adaptive_avg_pool2d', '_adaptive_avg_pool3d', 'mean', 'sum'),
    *('upsample_nearest2d', 'upsample_bilinear2d', 'upsample_bicubic2d', 'constant_pad_nd', 'reflection_pad2d'),
    *('expand', 'roll', 'flip', 'convolution'),
}
_NORMS = {'native_batch_norm', 'cudnn_batch_norm', 'miopen_batch_norm'}
_POOLS = {'max_pool2d_with_indices', 'max_pool3d_with_indices'}


def graph_bound(function: Callable[[Tensor], Tensor], inputs: Tensor, tol: float = 1e-5) -> Tensor:
    r"""Upper bound of a function's Lipschitz constant, along its computation graph.

    .. math:: L(y) = \sum_k \lVert A_k \rVert \, L(x_k) \quad\text{for}\quad y = \sum_k A_k x_k

    starting from L = 1 at the input. A chain gets the product of its layers' constants; a residual block
    :math:`x + f(x)` gets :math:`1 + L(f)`, so every path from input to output adds its own product; a concatenation
    gets the root of the sum of squares. Convolutions, linear layers, average pooling and interpolation count with their
    norm as operators on an input of this size (with padding, stride and groups), BatchNorm in evaluation mode with
    :math:`\max |\gamma| / \sqrt{v + \epsilon}`, max pooling with the root of the number of windows that contain an
    entry, activations with their largest slope.

    Args:
        function: run once, without gradient; a module must be in evaluation mode.
        inputs: ``(1, ...)``; only the shape matters.
        tol: for the layers' norms, as in :func:`~lckd_mm.functional.local_lipschitz`.
    Returns:
        A scalar of at least float32, in units of output over input; 0 if the output does not depend on the input.
    Error: an upper bound, except that the layers' norms are estimated from below to within ``tol``; loose by a factor
        that grows with the depth, since no single input need be stretched most in every layer.
    Raises:
        ValueError: more than one sample; an operation with unknown constant (the message names it): a product of two
            activations (attention, squeeze and excitation), softmax, LayerNorm, BatchNorm with batch statistics, a
            value read as a Python number, writing into part of a tensor.
    Source: Virmaux and Scaman, NeurIPS 2018, algorithm 1 (AutoLip). Deviation: concatenations, which they do not cover.
    """
    if inputs.dim() == 0 or len(inputs) != 1:
        raise ValueError(f'graph_bound: expected one sample (1, ...), got {tuple(inputs.shape)}')
    with torch.inference_mode(False), torch.no_grad():
        x = inputs.clone()  # a function may work in place
        recorder = _Recorder(x)
        with recorder:
            y = function(x)
        value = recorder.bound_of(y, tol)
        return torch.tensor(value, dtype=wide_type(x), device=x.device)


def product_bound(module: nn.Module, inputs: Tensor, tol: float = 1e-5) -> Tensor:
    r"""Upper bound of a chain's Lipschitz constant, with a gradient: the product of its layers' constants.

    They are those of :func:`graph_bound`. The bound is differentiable with respect to the weights of convolutions and
    linear layers, through :math:`u v^\top`; exact where a layer's largest singular value is simple.

    Args:
        module: an ``nn.Sequential``, nested or not, or a single layer. inputs: ``(B, ...)``; only the shape matters.
        tol: as in :func:`~lckd_mm.functional.local_lipschitz`.
    Returns:
        A scalar, in units of output over input.
    Error: as :func:`graph_bound`.
    Raises:
        ValueError: a layer with parameters that is not a convolution or linear; an operation with unknown constant.
    Source: Szegedy et al., ICLR 2014, section 4.3; Virmaux and Scaman, NeurIPS 2018, show how loose it can be.
    """
    x = inputs.new_zeros(1, *inputs.shape[1:])
    bound = x.new_ones((), dtype=wide_type(x))
    for name, layer in _chain(module, ''):
        if isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)):
            bound = bound * _stretch(layer, torch.zeros_like(x), tol)
        elif any(True for _ in layer.parameters()):
            raise ValueError(
                f'product_bound: {name!r} ({type(layer).__name__}) has parameters; take a chain (nn.Sequential) of '
                'convolutions, linear layers, and layers without parameters'
            )
        else:
            bound = bound * graph_bound(layer, x, tol)
        with torch.no_grad():
            x = layer(x)
    return bound


def _chain(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    if type(module).forward is not nn.Sequential.forward:
        yield name, module
        return
    for key, child in module.named_children():
        yield from _chain(child, f'{name}.{key}' if name else key)


def _stretch(layer: nn.Module, nothing: Tensor, tol: float) -> Tensor:
    """Norm of an affine layer, differentiable with respect to the weight."""
    with full_precision(nothing):
        _, direction, _ = steepest(layer, nothing, tol)
        # The norm is stationary in the direction, so there is no need to differentiate through it.
        return torch.linalg.vector_norm((layer(direction) - layer(nothing)).to(wide_type(nothing)))


@dataclass(eq=False)
class _Step:
    """How a tensor was computed: its parents with a factor each, combined by sum or root of squares; or why unknown."""

    parents: list[tuple['_Step', Factor]]
    squares: bool = False
    unknown: str | None = None


class _Recorder(TorchDispatchMode):
    """Records a step for each tensor that depends on the source. Norms are measured later, outside of the mode."""

    def __init__(self, source: Tensor):
        super().__init__()
        self.steps = WeakTensorKeyDictionary()
        self.first = self.steps[source] = _Step([])
        self.read: str | None = None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        found = [(x, self.steps[x]) for x in _tensors((args, kwargs)) if x in self.steps]
        out = func(*args, **kwargs)
        name = func._schema.name.removeprefix('aten::')
        if not found or name in _FRESH:
            return out
        if name == '_local_scalar_dense':
            self.read = self.read or 'a value read as a number'
            return out
        plain = name if name.startswith('_') else name.rstrip('_')
        step = self._step(plain, func, found, args, kwargs, out)
        if func._schema.is_mutable:
            step = self._written(name, args[0], step)
        for i, result in enumerate(_tensors(out)):
            # Of several results the first is the value; the others are statistics or indices.
            follows = i == 0 or plain in _UNIT
            self.steps[result] = step if follows else _Step([], unknown=f'result {i} of {name}')
        return out

    def _written(self, name: str, target: Tensor, step: _Step) -> _Step:
        """The step of a written tensor; unknown, for all tensors on the same memory, if there are others."""
        others = [x for x in self.steps if x is not target and _same_memory(x, target)]
        if target._base is None and not others:
            return step
        step = _Step([], unknown=f'{name} on a part of a tensor')
        for x in [*others, *([] if target._base is None else [target._base])]:
            self.steps[x] = step
        return step

    def _step(self, name: str, func, found: list, args: tuple, kwargs: dict, out: Any) -> _Step:
        if name in ('add', 'sub'):
            scales = 1.0, abs(float(kwargs.get('alpha', 1)))
            terms = [(x, scale) for x, scale in zip(args, scales) if isinstance(x, Tensor) and x in self.steps]
            return _Step([(self.steps[x], scale * _repeats(x, out)) for x, scale in terms])
        if name in ('cat', 'stack'):
            return _Step([(step, 1.0) for _, step in found], squares=True)
        if len(found) == 1:
            ((x, step),) = found
            factor = _factor(name, func, x, args, kwargs, out)
            if factor is not None:
                return _Step([(step, factor)])
        return _Step([], unknown=name)

    def bound_of(self, y: Tensor, tol: float) -> float:
        if self.read:
            raise _unknown(self.read)
        if y not in self.steps:
            return 0.0
        values: dict[_Step, float] = {self.first: 1.0}
        waiting = [self.steps[y]]
        while waiting:
            step = waiting[-1]
            if step.unknown:
                raise _unknown(step.unknown)
            missing = [parent for parent, _ in step.parents if parent not in values]
            if step not in values and missing:
                waiting += missing
                continue
            waiting.pop()
            if step in values:
                continue
            parts = [(f(tol) if callable(f) else f) * values[parent] for parent, f in step.parents]
            values[step] = math.hypot(*parts) if step.squares else math.fsum(parts)
        return values[self.steps[y]]


def _factor(name: str, func, x: Tensor, args: tuple, kwargs: dict, out: Any) -> Factor | None:
    """Lipschitz constant of an operation in x, the only argument that depends on the input; None if unknown."""
    if name in _UNIT:
        return 1.0
    if name in _SLOPES:
        return _SLOPES[name]
    if name == 'leaky_relu':
        return max(1.0, abs(args[1] if len(args) > 1 else 0.01))
    if name == 'mul' or (name == 'div' and args[0] is x and not kwargs.get('rounding_mode')):
        other = args[1] if args[0] is x else args[0]
        other = other.abs() if isinstance(other, Tensor) else torch.tensor(abs(other))
        largest = other.amax() if name == 'mul' else 1 / other.amin()
        return largest.item() * (_repeats(x, out) if isinstance(out, Tensor) else 1.0)
    if args[0] is not x and name not in ('addmm', 'mm', 'bmm', 'baddbmm'):
        return None
    if name in _NORMS:
        weight, variance, training, epsilon = args[1], args[4], args[5], args[7]
        if training or variance is None:
            return None
        scale = (variance + epsilon).rsqrt()
        return (scale if weight is None else scale * weight.abs()).amax().item()
    if name in _POOLS:
        return _shared_windows(x.dim() - 2, *args[1:])
    if name in _LINEAR:
        if name == 'convolution':
            args = (*args[:2], None, *args[3:])
        # Do not capture x: the closure would keep it alive.
        shape, nothing, rest = x.shape, x.new_zeros(()), args[1:]
        return lambda tol: _norm_of(lambda z: func(z, *rest, **kwargs), nothing, shape, tol)
    if name in ('mm', 'bmm', 'addmm', 'baddbmm'):
        if args[0] is x and name in ('addmm', 'baddbmm'):
            return None
        other = next(y for y in args[-2:] if y is not x)
        scale = abs(float(kwargs.get('alpha', 1)))
        return lambda tol: scale * torch.linalg.matrix_norm(other.to(wide_type(other)), ord=2).amax().item()
    return None


def _norm_of(function: Callable[[Tensor], Tensor], nothing: Tensor, shape: tuple[int, ...], tol: float) -> float:
    """Norm of a linear function of tensors of this shape; the first dimension need not be the batch."""
    zeros = nothing.expand(1, math.prod(shape))
    return local_lipschitz(lambda z: function(z.view(shape)).reshape(1, -1), zeros, tol)[0].item()


def _shared_windows(sides: int, kernel, stride=(), padding=0, dilation=1, ceil_mode=False) -> float:
    """Norm of max pooling: the square root of the maximum number of windows that share an entry."""
    sizes = (kernel, stride or kernel, dilation)
    axes = zip(*((v,) * sides if isinstance(v, int) else tuple(v) for v in sizes), strict=True)
    return math.sqrt(math.prod(math.ceil((d * (k - 1) + 1) / s) for k, s, d in axes))


def _repeats(x: Tensor, out: Tensor) -> float:
    """Norm of broadcasting x to the shape of the result."""
    return math.sqrt(out.numel() / max(1, x.numel()))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _same_memory(x: Tensor, y: Tensor) -> bool:
    return x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr() != 0


def _unknown(what: str) -> ValueError:
    return ValueError(
        f'graph_bound: {what} has no constant that is known here; it takes convolutions, linear layers, BatchNorm in '
        'evaluation mode, pooling, interpolation, activations, sums and concatenations; for others, local_lipschitz'
    )
