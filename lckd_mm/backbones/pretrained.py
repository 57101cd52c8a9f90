"""Weights that torchvision publishes, for the hosts' backbones of the same layers under other names."""

from collections.abc import Mapping

from mmengine.model.weight_init import update_init_info
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from ..registry import WEIGHT_INITIALIZERS


def _same_layers(state: Mapping[str, Tensor], module: nn.Module, what: str) -> dict[str, Tensor]:
    """The tensors of ``state`` under the module's names, in the order of both."""
    own = module.state_dict()
    for (name, tensor), (theirs, value) in zip(own.items(), state.items()):
        if tensor.shape != value.shape:
            raise ValueError(
                f'TorchvisionInit: {name!r} of {type(module).__name__} is {tuple(tensor.shape)}, and {theirs!r} of '
                f'{what} is {tuple(value.shape)}; it takes widen_factor=1 and the layers of the same architecture'
            )
    if len(own) > len(state):
        raise ValueError(
            f'TorchvisionInit: {type(module).__name__} has {len(own)} tensors, {what} only {len(state)}; '
            'it takes the weights of the same architecture'
        )
    return dict(zip(own, state.values()))


@WEIGHT_INITIALIZERS.register_module()
class TorchvisionInit:
    """An ``init_cfg`` that fills a backbone with torchvision's weights, tensor by tensor in their order.

    The hosts' MobileNetV2 has torchvision's layers in torchvision's order, under names of their own, which differ from
    host to host. A backbone may lack the last of them, as mmsegmentation's lacks the convolution to 1280 channels.

    Args:
        checkpoint: a file as torchvision publishes it, its address, or ``torchvision://mobilenet_v2``, which is fetched
            once, and not at all if it lies in ``hub/checkpoints`` of torch's cache.
        prefix: of the tensors to take.
    Raises:
        ValueError: another number of tensors, or another shape.
    Example:
        backbone = dict(
            type='MobileNetV2',
            init_cfg=dict(type='lckd_mm.TorchvisionInit', checkpoint='torchvision://mobilenet_v2'),
        )
    """

    def __init__(self, checkpoint: str, prefix: str = 'features.'):
        self.checkpoint, self.prefix = checkpoint, prefix

    def __call__(self, module: nn.Module) -> None:
        state = CheckpointLoader.load_checkpoint(self.checkpoint, map_location='cpu')
        state = {key: value for key, value in state.items() if key.startswith(self.prefix)}
        module.load_state_dict(_same_layers(state, module, self.checkpoint))
        for child in module.children():
            # mmengine initialises children after their parent unless they say that they are.
            child.is_init = True
        if hasattr(module, '_params_init_info'):
            update_init_info(module, f'TorchvisionInit: {self.checkpoint}')
