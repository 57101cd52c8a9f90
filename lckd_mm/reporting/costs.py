"""What a model costs: parameters, multiply-adds, activations, the size of its weights."""

import warnings

import torch
from mmengine.analysis import ActivationAnalyzer, FlopAnalyzer
from torch import nn

from ..contexts import eval_mode
from ..storage.export import PlainForward


def figures(model: nn.Module, size: tuple[int, int]) -> dict[str, int]:
    """Parameters, and what mmengine counts of one image of ``size`` (height, width) through the plain forward.

    ``flops`` are fused multiply-adds of convolutions, matrix products, normalisations and the like; neither decoding
    nor NMS is in them. ``activations`` are the elements of the outputs of convolutions and matrix products.

    Raises:
        RuntimeError: no image of this size goes through the model.
    """
    with eval_mode(model), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        inputs = (torch.zeros(1, 3, *size),)
        counts = {}
        for name, analyzer in (('flops', FlopAnalyzer), ('activations', ActivationAnalyzer)):
            counts[name] = int(
                analyzer(PlainForward(model), inputs).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
                .tracer_warnings('none').total()
            )  # fmt: skip
    return dict(parameters=sum(p.numel() for p in model.parameters()), **counts)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's state_dict: its parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
