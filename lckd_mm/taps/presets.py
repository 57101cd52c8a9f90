"""Preset taps: the addresses of ``taps='backbone'`` for the backbones of the three hosts and of this package.

The stages are named stage1, stage2, … in order of depth. A stage is tapped

* before its last ReLU if it ends in one (ResNets, VGG, MobileNetV1);
* after the first BatchNorm of the next stage if its blocks begin with one (WideResNet, PyramidNet), in PyramidNet's
  bottlenecks after the second: the positions of OFD and LONDON;
* after its last BatchNorm if its blocks end linearly (MobileNetV2);
* at its output in transformers (Swin, MiT): as a map if the backbone returns one, otherwise as tokens.
"""

from collections.abc import Callable

from torch import nn

from ..hosts import host_of
from .capture import LIST_ALL
from .modules import is_activation, is_norm


def preset_taps(model: nn.Module, name: str) -> dict[str, str]:
    """Tap name to address for a preset: 'backbone' gives stage1, stage2, … of the model's ``backbone``.

    Raises:
        ValueError: an unknown preset, or a backbone without one.
    """
    if name != 'backbone':
        raise ValueError(f"taps: unknown preset {name!r}, expected 'backbone' or a dict of tap name to address")
    backbone = getattr(model, 'backbone', None)
    # By class name: the hosts' own classes share names and layouts.
    kinds = [kind.__name__ for kind in type(backbone).__mro__]
    preset = next((_PRESETS[kind] for kind in kinds if kind in _PRESETS), None)
    if preset is None and getattr(backbone, 'res_layers', None):
        return {f'stage{i}': f'backbone.{layer}@preact' for i, layer in enumerate(backbone.res_layers, 1)}
    if preset is None:
        raise ValueError(
            f"taps: there is no preset 'backbone' for {kinds[0]}; write a dict such as "
            f"dict(stage1='backbone.layer1@preact', …), or dict(stage1='backbone[0]', …) of its outputs; {LIST_ALL}"
        )
    return {f'stage{i}': f'backbone{address}' for i, address in enumerate(preset(backbone), 1)}


def _pyramidnet(backbone: nn.Module) -> list[str]:
    # OFD's: in a bottleneck bn2, the first BatchNorm before a ReLU; otherwise bn1, although no ReLU reads it.
    norm = 'bn2' if backbone.layer2[0].expansion > 1 else 'bn1'
    return [f'.layer2.0.{norm}', f'.layer3.0.{norm}', '.bn_final']


def _mobilenet_v2(backbone: nn.Module) -> list[str]:
    # The last stage before each halving of the map, and the last stage; layer1 is one block at half resolution.
    stages = ('layer2', 'layer3', 'layer5', 'layer7')
    norms = {s: [path for path, m in backbone.get_submodule(s).named_modules() if is_norm(m)] for s in stages}
    return [f'.{stage}.{paths[-1]}' for stage, paths in norms.items()]


def _vgg(backbone: nn.Module) -> list[str]:
    layers = list(backbone.features)
    ranges = list(backbone.range_sub_modules)
    # SSD's VGG ends in two more convolutions, which its head reads.
    ranges.append([ranges[-1][1], len(layers)])
    addresses = []
    for start, end in ranges:
        # The layer is a ReLU in mmcv and mmdet, a ConvModule ending in a ReLU in mmpretrain.
        last = [i for i in range(start, end) if any(map(is_activation, layers[i].modules()))][-1:]
        addresses += [f'.features.{i}' + ('@in' if is_activation(layers[i]) else '@preact') for i in last]
    return addresses


def _swin(backbone: nn.Module) -> list[str]:
    # Stages of mmseg and mmdet return (downsampled, its size, output, its size), those of mmpretrain (output, size).
    item = 0 if host_of(backbone) == 'mmpretrain' else 2
    return _outputs(backbone, lambda i: f'.stages.{i}[{item}]', len(backbone.stages))


def _outputs(backbone: nn.Module, tokens: Callable[[int], str], stages: int) -> list[str]:
    """The backbone's own outputs, which are maps; for a stage that it does not return, the tokens."""
    given = sorted(backbone.out_indices)
    return [f'[{given.index(i)}]' if i in given else tokens(i) for i in range(stages)]


_PRESETS: dict[str, Callable[[nn.Module], list[str]]] = {
    'CifarResNet': lambda _: [f'.layer{i}@preact' for i in (1, 2, 3)],
    'MixVisionTransformer': lambda backbone: _outputs(backbone, lambda i: f'.layers.{i}.2', len(backbone.layers)),
    'MobileNetV1': lambda _: [f'.block{i}.bn2' for i in (3, 5, 11, 13)],
    'MobileNetV2': _mobilenet_v2,
    'PyramidNet': _pyramidnet,
    'SwinTransformer': _swin,
    'SwinTransformerV2': _swin,
    'VGG': _vgg,
    'WideResNet': lambda _: ['.block2.0.bn1', '.block3.0.bn1', '.bn1'],
}
