"""Estimates of a network's Lipschitz constant, to compare the transmitting norm with.

All norms are Euclidean. ``local_lipschitz`` is a lower bound of the constant at any input, ``product_bound`` an upper
bound. None of them has a gradient, except ``product_bound(gradient=True)``.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from .krylov import generic_start, leading_eigenvector
from .precision import full_precision, inverse_scale, wide_type
from .spectral import leading_triple

# Lipschitz constants of activations. Those of GELU, SiLU and similar exceed 1; they are not supported.
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

    The Jacobian is never formed: one forward pass, then two backward passes per Lanczos step, for :math:`J u` (the
    gradient of the gradient) and :math:`J^\top v`.

    Args:
        function: a module or function that treats samples independently and that torch can differentiate twice (not
            fused attention: run that under ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``); a module must be in
            evaluation mode, or have no BatchNorm.
        inputs: ``(B, ...)``, floating point; the iteration runs in at least float32.
        tol: stop at this residual, relative to the eigenvalue of :math:`J^\top J`.
        max_steps: maximum number of iterations; each stores one more vector of the inputs' size.
        residual: also return, for one more product, :math:`\lVert J^\top J v - \sigma^2 v \rVert / \sigma^2`, where v
            is the leading right singular vector. If it is above ``tol``, ``max_steps`` was too small.
    Returns:
        ``(B,)``, in units of output over input, without gradient; 0 where the function is flat. With ``residual``, a
        pair of these and the residuals ``(B,)``.
    Error: from below; relative error about ``tol`` :math:`^2` if the largest two singular values differ, otherwise at
        most ``tol``; :func:`~lckd_mm.functional.transmitting_norms` describes the failure with close singular values.
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
    """:func:`local_lipschitz`, the right singular vector ``(B, ...)``, and the residuals (zeros without ``check``).

    All are zeros where the function is flat.
    """
    dtype = wide_type(inputs)
    nothing = inputs.new_zeros(len(inputs), dtype=dtype)
    flat_everywhere = nothing, torch.zeros_like(inputs), nothing
    if not inputs.numel():
        return flat_everywhere
    with torch.inference_mode(False), torch.enable_grad(), full_precision(inputs):
        x = inputs.detach().clone().requires_grad_()
        y = function(x.clone())  # a copy, since the function may work in place
        # `pulled` is linear in the cotangent, so its gradient is the forward derivative.
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
    r"""Largest singular value of each convolution and linear layer, as an operator on inputs of the actual size.

    Padding, stride, dilation and groups are taken into account; the bias does not matter.

    Args:
        module: run once on ``inputs``, without gradient and in its current mode: call ``eval()`` first to leave
            BatchNorm's running statistics unchanged. inputs: ``(B, ...)``.
        tol: as in :func:`local_lipschitz`.
    Returns:
        Dict from layer name to scalar, in order of execution. If a layer runs on several sizes, the largest value
        counts. A layer whose weight is used without calling it (inside attention) is missing.
    Error: as :func:`local_lipschitz`. A convolution's norm grows slowly with the size of its input and is bounded.
    Source: the definition; Sedghi, Gupta, Long, ICLR 2019, give a closed form for circular padding.
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
    (:math:`\max |\gamma| / \sqrt{v + \epsilon}`), average pooling (as a linear operator), max pooling (the square root
    of the number of windows that contain an entry), and activations (their largest slope).

    Args:
        module: an ``nn.Sequential``, nested or not, or a single layer. inputs: ``(B, ...)``; only the shape matters.
        tol: as in :func:`local_lipschitz`.
        gradient: make the bound differentiable with respect to the weights of convolutions and linear layers, and
            nothing else, through :math:`u v^\top`; exact where a layer's largest singular value is simple.
    Returns:
        A scalar, in units of output over input.
    Error: an upper bound, except that the layers' norms are estimated from below to within ``tol``; loose, since no
        single input need be stretched most in every layer.
    Raises:
        ValueError: a module that is not a chain of such layers (a residual block, attention), or BatchNorm in training.
    Source: Szegedy et al., ICLR 2014, section 4.3; Virmaux and Scaman, NeurIPS 2018, show how loose it can be.
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
            'activations; a residual net is not a chain: take its branches one by one, or use local_lipschitz'
        )
    return slope


def shared_windows(sides: int, size: Sides, stride: Sides, dilation: Sides) -> float:
    """Lipschitz constant of max pooling: the square root of the maximum number of windows that share an entry."""
    axes = zip(*((v,) * sides if isinstance(v, int) else tuple(v) for v in (size, stride, dilation)), strict=True)
    return math.sqrt(math.prod(math.ceil((d * (k - 1) + 1) / s) for k, s, d in axes))


def _norm_of_layer(layer: nn.Module, shape: tuple[int, ...], tol: float) -> Tensor:
    if type(layer).forward is nn.Linear.forward:
        with full_precision(layer.weight):
            return leading_triple(layer.weight.detach().to(wide_type(layer.weight))[None], tol)[0][0]
    # The layer is affine, so its Jacobian is the same everywhere.
    return local_lipschitz(layer, layer.weight.new_zeros(1, *shape), tol)[0]


def _stretch(layer: nn.Module, shape: tuple[int, ...], tol: float) -> Tensor:
    """:func:`_norm_of_layer`, differentiable with respect to the weight."""
    nothing = layer.weight.new_zeros(1, *shape)
    with full_precision(nothing):
        _, direction, _ = _steepest(layer, nothing, tol)
        # The norm is stationary in the direction, so there is no need to differentiate through it.
        return torch.linalg.vector_norm((layer(direction) - layer(nothing)).to(wide_type(nothing)))
