"""Costs of a model: parameters, multiply-adds, activations, size of its weights."""

import warnings

import torch
from mmengine.analysis import ActivationAnalyzer, FlopAnalyzer
from torch import nn

from ..contexts import eval_mode
from ..errors import one_line
from ..hosts import image_channels
from ..storage.export import PlainForward


def figures(model: nn.Module, size: tuple[int, int]) -> dict[str, int]:
    """Parameters, and mmengine's counts for the plain forward of one image of ``size`` (height, width).

    ``flops`` are fused multiply-adds of convolutions, matrix products, normalisations and similar, without decoding and
    NMS. ``activations`` are the elements of the outputs of convolutions and matrix products.

    Raises:
        RuntimeError: the model cannot process an image of this size, or has no forward of images alone.
    """
    with eval_mode(model), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        inputs = (torch.zeros(1, image_channels(model), *size),)
        counts = {}
        try:
            PlainForward(model)(*inputs)
        except RuntimeError:
            raise
        except Exception as error:  # a host may raise anything
            raise RuntimeError(f'it has no plain forward of images alone: {one_line(error)}') from error
        for name, analyzer in (('flops', FlopAnalyzer), ('activations', ActivationAnalyzer)):
            counts[name] = int(
                analyzer(PlainForward(model), inputs).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
                .tracer_warnings('none').total()
            )  # fmt: skip
    return dict(parameters=sum(p.numel() for p in model.parameters()), **counts)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's state_dict: its parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
