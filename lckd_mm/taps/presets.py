"""Preset taps: the addresses that ``taps='backbone'``, ``'neck'`` and ``'logits'`` stand for.

``'backbone'`` names the stages stage1, stage2, … in order of depth. Stages with a known position are tapped

* before their last ReLU if they end in one (ResNets, VGG, MobileNetV1);
* after the first BatchNorm of the next stage if its blocks begin with one (WideResNet, PyramidNet), in PyramidNet's
  bottlenecks after the second: the positions of OFD and LONDON;
* after their last BatchNorm if their blocks end linearly (MobileNetV2);
* at their output in Swin and MiT: as a map if the backbone returns one, otherwise as tokens.

Any other backbone is run once, see :func:`~lckd_mm.taps.search.stages`: its stages are the features of stride 4, 8, ….
``'neck'`` gives the levels of a pyramid, p3 at stride 8 and so on (:func:`~lckd_mm.taps.search.levels`), and
``'logits'`` the class scores (:func:`~lckd_mm.taps.search.scores`).
"""

from collections.abc import Callable

from torch import nn

from ..errors import one_line
from ..hosts import host_of, own_sizes, training_size
from . import search
from .modules import is_activation, is_norm

PRESETS = ('backbone', 'neck', 'logits')


def preset_taps(model: nn.Module, name: str, size: tuple[int, int] | None = None) -> dict[str, str]:
    """Tap name to address for a preset.

    Args:
        size: height and width of the image on which the model is run, by default those of its training.
    Raises:
        ValueError: an unknown preset, or a model that does not have what it stands for.
    """
    if name not in PRESETS:
        raise ValueError(
            f'taps: unknown preset {name!r}, expected one of {", ".join(map(repr, PRESETS))}, or a dict of tap name to '
            'address'
        )
    if name == 'backbone' and (known := _known_stages(getattr(model, 'backbone', None))):
        return {f'stage{i}': f'backbone{address}' for i, address in enumerate(known, 1)}
    find = {'backbone': search.stages, 'neck': search.levels, 'logits': search.scores}[name]
    # Addresses do not depend on the size, so that a net which takes one alone is run on images of that.
    sizes = [size or training_size(model), *own_sizes(model)]
    errors = []
    for height, width in dict.fromkeys(sizes):
        try:
            return find(model, (height, width))
        except search.NotFoundError as error:
            raise ValueError(f'taps: {type(model).__name__} has no preset {name!r}: {error}') from None
        except Exception as error:  # a host may raise anything on an image that does not fit
            errors.append(error)
    raise ValueError(
        f'taps: the preset {name!r} is found by running {type(model).__name__} on one image of {sizes[0][0]} x '
        f'{sizes[0][1]}, which failed: {one_line(errors[0])}'
    ) from errors[0]


def _known_stages(backbone: nn.Module | None) -> list[str]:
    # By class name: the hosts' own classes share names and layouts.
    kinds = [kind.__name__ for kind in type(backbone).__mro__]
    preset = next((_PRESETS[kind] for kind in kinds if kind in _PRESETS), None)
    if preset is not None:
        return preset(backbone)
    return [f'.{layer}@preact' for layer in getattr(backbone, 'res_layers', None) or ()]


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
    # Its blocks run inside one autograd function: only what that returns carries a gradient.
    'RevVisionTransformer': lambda _: ['[0]'],
    'SwinTransformer': _swin,
    'SwinTransformerV2': _swin,
    # Its third stage runs three branches in training, one in evaluation: other rows.
    'TridentResNet': lambda _: ['.layer1@preact', '.layer2@preact'],
    'VGG': _vgg,
    'WideResNet': lambda _: ['.block2.0.bn1', '.block3.0.bn1', '.bn1'],
}
