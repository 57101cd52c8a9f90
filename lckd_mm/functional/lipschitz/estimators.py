"""Estimates of a network's Lipschitz constant that the transmitting norm can be held against.

All norms are Euclidean. ``local_lipschitz`` at any inputs is a lower bound of the constant, ``product_bound`` an upper
one. None of them carries a gradient, but ``product_bound`` where it is asked for.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from .krylov import generic_start, leading_eigenvector
from .precision import full_precision, inverse_scale, wide_type
from .spectral import leading_triple

# Largest slope. Of GELU, SiLU and the like it is above 1 and not needed to be known here: they are refused.
_SLOPES = {
    nn.Identity: 1.0,
    nn.Flatten: 1.0,
    nn.Unflatten: 1.0,
    nn.Dropout: 1.0,
    nn.Dropout2d: 1.0,
    nn.ReLU: 1.0,
    nn.ReLU6: 1.0,
    nn.Hardtanh: 1.0,
    nn.Tanh: 1.0,
    nn.Softplus: 1.0,
    nn.Softshrink: 1.0,
    nn.Sigmoid: 0.25,
}
_CONVOLUTIONS = (nn.modules.conv._ConvNd,)
_LINEAR_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
_MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
Sides = int | Sequence[int]


def local_lipschitz(
    function: Callable[[Tensor], Tensor],
    inputs: Tensor,
    tol: float = 1e-5,
    max_steps: int = 64,
    residual: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Local Lipschitz constant at each input: the largest singular value of the Jacobian there.

    .. math:: \sigma_1(J_f(x)), \qquad J_f(x) = \partial f(x) / \partial x

    The Jacobian is never formed: one forward, then two backward passes a Lanczos step, for :math:`J u` (the gradient of
    the gradient) and :math:`J^\top v`.

    Args:
        function: a module or function that treats each sample for itself, twice differentiable by torch (fused
            attention is not: run it under ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``); a module in evaluation
            mode, or without BatchNorm.
        inputs: ``(B, ...)``, floating; the iteration itself runs in at least float32.
        tol: residual over eigenvalue of :math:`J^\top J` at which the iteration stops.
        max_steps: of the iteration; each keeps one more vector of the inputs' size.
        residual: give it as well, for one more product: with the direction v that is stretched most,
            :math:`\lVert J^\top J v - \sigma^2 v \rVert / \sigma^2`. Above ``tol``, ``max_steps`` were too few.
    Returns:
        ``(B,)``, in units of output over input, without gradient; 0 where the function is flat. With ``residual``, a
        pair of these and the residuals ``(B,)``.
    Error: from below, relatively about ``tol`` :math:`^2` where the largest two singular values differ, and at most
        ``tol`` else, with the reservation of :func:`~lckd_mm.functional.transmitting_norms` on close rivals.
    Raises:
        ValueError: a module whose BatchNorm would couple the samples of the batch.
    Source: the definition; the supremum over a region is its Lipschitz constant there (Federer 1969, 3.1.6).
    """
    if isinstance(function, nn.Module):
        for name, module in function.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
                raise ValueError(
                    f'local_lipschitz: BatchNorm {name!r} takes statistics of the batch, so that no sample has a '
                    'constant of its own; call eval() on the module first'
                )
    sigma, _, rest = _steepest(function, inputs, tol, max_steps, residual)
    return (sigma, rest) if residual else sigma


def _steepest(
    function: Callable[[Tensor], Tensor], inputs: Tensor, tol: float, max_steps: int = 64, check: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`local_lipschitz`, the unit vector ``(B, ...)`` that is stretched so, and, with ``check``, residuals.

    Zeros where all is flat.
    """
    dtype = wide_type(inputs)
    nothing = inputs.new_zeros(len(inputs), dtype=dtype)
    flat_everywhere = nothing, torch.zeros_like(inputs), nothing
    if not inputs.numel():
        return flat_everywhere
    with torch.inference_mode(False), torch.enable_grad(), full_precision(inputs):
        x = inputs.detach().clone().requires_grad_()
        y = function(x.clone())  # a copy, which the function may overwrite
        # Linear in the cotangent, so that its own gradient is the forward derivative.
        cotangent = torch.zeros_like(y).requires_grad_()
        pulled = None
        if y.requires_grad:
            (pulled,) = torch.autograd.grad(y, x, cotangent, create_graph=True, allow_unused=True)
        if pulled is None or not pulled.requires_grad:
            return flat_everywhere
        scale: Tensor | None = None

        def apply(u: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal scale
            (image,) = torch.autograd.grad(pulled, cotangent, u.view_as(x).to(x.dtype), retain_graph=True)
            flat = image.reshape(len(u), 1, -1).to(dtype)
            if scale is None:
                scale = inverse_scale(flat)
            flat = flat * scale
            (product,) = torch.autograd.grad(y, x, flat.view_as(y).to(y.dtype), retain_graph=True)
            return product.reshape(u.shape).to(dtype) * scale, flat

        start = generic_start(x[0].numel(), x.to(dtype)).expand(len(x), 1, -1)
        square, vector, image = leading_eigenvector(apply, start, tol, max_steps)
        sigma = (torch.linalg.vector_norm(image, dim=-1, keepdim=True) / scale).flatten()
        rest = nothing
        if check:
            gap = torch.linalg.vector_norm(apply(vector)[0] - square * vector, dim=-1, keepdim=True)
            rest = torch.where(square > 0, gap / square, 0).flatten().detach()
        return sigma.detach(), vector.view_as(x).to(x.dtype).detach(), rest


def layer_norms(module: nn.Module, inputs: Tensor, tol: float = 1e-5) -> dict[str, Tensor]:
    r"""Largest singular value of each convolution and linear layer, as an operator on inputs of the size that it sees.

    Padding, stride, dilation and groups are the layer's own; the bias plays no part.

    Args:
        module: run once on ``inputs``, without gradient and in its own mode: call ``eval()`` first where BatchNorm's
            running statistics are to stay. inputs: ``(B, ...)``.
        tol: as in :func:`local_lipschitz`.
    Returns:
        Name of the layer to a scalar, in order of execution. A layer that runs on several sizes has the largest; one
        whose weight is used without its being called (inside attention) is missing.
    Error: as :func:`local_lipschitz`. A convolution's norm grows slowly with the size of its input and is bounded.
    Source: the definition; Sedghi, Gupta, Long, ICLR 2019, give the case of circular padding in closed form.
    """
    seen: dict[str, list[tuple[int, ...]]] = {}

    def note(name: str):
        def hook(layer: nn.Module, args: tuple, kwargs: dict) -> None:
            shapes = seen.setdefault(name, [])
            shape = (args[0] if args else next(iter(kwargs.values()))).shape[1:]
            if shape not in shapes:
                shapes.append(shape)

        return hook

    layers = {n: m for n, m in module.named_modules() if isinstance(m, (*_CONVOLUTIONS, nn.Linear))}
    with contextlib.ExitStack() as stack, torch.no_grad():
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(note(name), with_kwargs=True).remove)
        module(inputs)
    return {
        name: torch.stack([_norm_of_layer(layers[name], shape, tol) for shape in shapes]).amax()
        for name, shapes in seen.items()
    }


def product_bound(module: nn.Module, inputs: Tensor, tol: float = 1e-5, gradient: bool = False) -> Tensor:
    r"""Upper bound of a chain's Lipschitz constant: the product of its layers' constants.

    Layers: convolutions and linear layers (:func:`layer_norms`), BatchNorm in evaluation mode
    (:math:`\max |\gamma| / \sqrt{v + \epsilon}`), average pooling (as the linear operator that it is), max pooling
    (the square root of the number of windows that an entry is part of), and activations by their largest slope.

    Args:
        module: an ``nn.Sequential``, nested or not, or a single layer. inputs: ``(B, ...)``, of which the sizes matter.
        tol: as in :func:`local_lipschitz`.
        gradient: by the weights of convolutions and linear layers, :math:`u v^\top` through the layer, exact where a
            layer's largest singular value is simple; by nothing else.
    Returns:
        A scalar, in units of output over input.
    Error: an upper bound, apart from the layers' own norms, which are found from below to within ``tol``; loose, since
        no input need stretch most in every layer.
    Raises:
        ValueError: a module that is no chain of such layers (a residual block, attention), or BatchNorm in training.
    Source: Szegedy et al., ICLR 2014, section 4.3; Virmaux and Scaman, NeurIPS 2018, show how far off it can be.
    """
    with torch.inference_mode(False), torch.no_grad():
        x = inputs.clone()  # a layer may work in place
        bound = x.new_ones((), dtype=wide_type(x))
        for name, layer in _chain(module, ''):
            if gradient and isinstance(layer, (*_CONVOLUTIONS, nn.Linear)):
                with torch.enable_grad():
                    bound = bound * _stretch(layer, x.shape[1:], tol)
            else:
                with torch.set_grad_enabled(gradient):
                    bound = bound * _constant(layer, name, x, tol)
            x = layer(x)
    return bound


def _chain(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    if type(module).forward is not nn.Sequential.forward:
        yield name, module
        return
    for key, child in module.named_children():
        yield from _chain(child, f'{name}.{key}' if name else key)


def _constant(layer: nn.Module, name: str, x: Tensor, tol: float) -> Tensor | float:
    if isinstance(layer, (*_CONVOLUTIONS, nn.Linear)):
        return _norm_of_layer(layer, x.shape[1:], tol)
    if isinstance(layer, _LINEAR_POOLS):
        return local_lipschitz(layer, x.new_zeros(1, *x.shape[1:]), tol)[0]
    if isinstance(layer, nn.modules.batchnorm._BatchNorm) and not layer.training and layer.running_var is not None:
        scale = (layer.running_var + layer.eps).rsqrt()
        return (scale if layer.weight is None else scale * layer.weight.abs()).amax()
    if isinstance(layer, _MAX_POOLS):
        return shared_windows(x.dim() - 2, layer.kernel_size, layer.stride, layer.dilation)
    if isinstance(layer, nn.LeakyReLU):
        return max(1.0, abs(layer.negative_slope))
    slope = _SLOPES.get(type(layer))
    if slope is None or (isinstance(layer, nn.modules.dropout._DropoutNd) and layer.training):
        raise ValueError(
            f'product_bound: {name!r} ({type(layer).__name__}) has no constant that is known here; it takes chains '
            '(nn.Sequential) of convolutions, linear layers, BatchNorm and Dropout in evaluation mode, pooling and '
            'activations; a residual net is no chain: take its branches one by one, or local_lipschitz'
        )
    return slope


def shared_windows(sides: int, size: Sides, stride: Sides, dilation: Sides) -> float:
    """Constant of max pooling: the root of the most windows that share an entry."""
    axes = zip(*((v,) * sides if isinstance(v, int) else tuple(v) for v in (size, stride, dilation)), strict=True)
    return math.sqrt(math.prod(math.ceil((d * (k - 1) + 1) / s) for k, s, d in axes))


def _norm_of_layer(layer: nn.Module, shape: tuple[int, ...], tol: float) -> Tensor:
    if type(layer).forward is nn.Linear.forward:
        with full_precision(layer.weight):
            return leading_triple(layer.weight.detach().to(wide_type(layer.weight))[None], tol)[0][0]
    # Affine, so that the Jacobian is the same everywhere.
    return local_lipschitz(layer, layer.weight.new_zeros(1, *shape), tol)[0]


def _stretch(layer: nn.Module, shape: tuple[int, ...], tol: float) -> Tensor:
    """:func:`_norm_of_layer`, differentiable by the weight."""
    nothing = layer.weight.new_zeros(1, *shape)
    with full_precision(nothing):
        _, direction, _ = _steepest(layer, nothing, tol)
        # The direction is where the norm is stationary, so that it need not be differentiated.
        return torch.linalg.vector_norm((layer(direction) - layer(nothing)).to(wide_type(nothing)))
