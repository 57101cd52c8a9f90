"""TeacherImages: the student's images as the teacher takes them, in its normalisation and at its size."""

import inspect
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor

from .. import arguments
from ..hosts import valid_region
from .side import Feature, each

#: mean and std in the order of the channels, and whether these are flipped, as :func:`~lckd_mm.hosts.normalisation`.
Normalisation = tuple[list[float], list[float], bool]


class TeacherImages:
    """Converts a batch of the student's normalised images for the teacher.

    Args:
        size: height and width to which they are resized, bilinearly with antialiasing; one number for a square.
        scale: factor on their height and width.
        patch: the side of the patches of a vision transformer: height and width are rounded to a multiple of it.
        prefix: the number of tokens before those of the image. Tokens (B, prefix + h w, C) are then given as maps
            (B, C, h, w), with h and w the sides of the image in patches.
    Raises:
        ValueError: a value that is not positive; ``size`` beside ``scale``, or no multiple of ``patch``; ``prefix``
            without ``patch``.
    """

    def __init__(
        self,
        size: int | Sequence[int] | None = None,
        scale: float = 1.0,
        patch: int | None = None,
        prefix: int | None = None,
    ):
        self.size = None
        if size is not None:
            sides = arguments.integers('teacher', 'size', [size, size] if isinstance(size, int) else size)
            if len(sides) != 2:
                raise ValueError(f'teacher: size must be one number, or height and width, got {size!r}')
            self.size = tuple(sides)
        self.scale = arguments.number('teacher', 'scale', scale, above=0)
        self.patch = 1 if patch is None else arguments.integer('teacher', 'patch', patch)
        self.prefix = None if prefix is None else arguments.integer('teacher', 'prefix', prefix, at_least=0)
        if self.size is not None and scale != 1:
            raise ValueError('teacher: size fixes height and width, so scale has no effect; remove one of them')
        if self.size is not None and any(side % self.patch for side in self.size):
            raise ValueError(
                f'teacher: size={size!r} is no multiple of patch={patch}; write size={self._rounded(self.size)}'
            )
        if prefix is not None and patch is None:
            raise ValueError(
                'teacher: prefix gives tokens as maps, whose sides follow from that of a patch; write patch=… too'
            )
        self._convert: tuple[Tensor, Tensor, bool] | None = None

    @classmethod
    def of(cls, teacher: Mapping[str, Any]) -> 'TeacherImages':
        """Those of a teacher's config."""
        return cls(**{key: teacher[key] for key in inspect.signature(cls).parameters if key in teacher})

    @property
    def resizes(self) -> bool:
        """Whether the teacher's images may have another size than the student's."""
        return self.size is not None or (self.scale, self.patch) != (1, 1)

    def _rounded(self, sides: Sequence[float]) -> tuple[int, ...]:
        return tuple(max(1, math.floor(side / self.patch + 0.5)) * self.patch for side in sides)

    def sized(self, size: Sequence[int]) -> tuple[int, int]:
        """Height and width of the teacher's images, for images of the student of this height and width."""
        if self.size is not None:
            return self.size
        return self._rounded([side * self.scale for side in size])

    def match(self, own: Normalisation, other: Normalisation) -> None:
        """Compute, and log, how to convert images that are normalised as the student's, ``other``.

        Raises:
            ValueError: mean or std of either net is not as many finite numbers, a std is 0, or the nets' images differ
            in their channels.
        """
        channels = max(len(own[0]), len(other[0]))
        own, other = (tuple(v * channels if len(v) == 1 else v for v in of[:2]) + of[2:] for of in (own, other))
        # A preprocessor keeps them in float32.
        if (
            own[2] == other[2]
            and len(own[0]) == len(other[0])
            and all(map(_close, own[0] + own[1], other[0] + other[1]))
        ):
            return
        for who, (mean, std, _) in (('teacher', own), ('student', other)):
            if len(mean) != len(std) or not all(map(math.isfinite, mean + std)) or not all(std):
                raise ValueError(
                    f'{who}: the mean and std of its images must be as many finite numbers, std not 0, got {mean} and '
                    f'{std}'
                )
        if len(own[0]) != len(other[0]):
            raise ValueError(
                f'teacher: its data_preprocessor normalises {len(own[0])} channels, and that of the student '
                f'{len(other[0])}: give both the same kind of images'
            )
        mean_s, std_s, mean_t, std_t = (torch.tensor(v).view(1, -1, 1, 1) for v in (*other[:2], *own[:2]))
        # The hosts flip nothing but three channels.
        flip = own[2] != other[2] and channels == 3
        if flip:
            mean_s, std_s = mean_s.flip(1), std_s.flip(1)
        # x_t = (x_s * std_s + mean_s - mean_t) / std_t, with the channels in the teacher's order.
        self._convert = std_s / std_t, (mean_s - mean_t) / std_t, flip
        print_log(
            "teacher: its images are normalised otherwise than the student's "
            f'(mean, std, flipped channels: {own} against {other}); they are converted for it',
            logger='current',
        )

    def __call__(self, inputs: Tensor, data_samples: list | None) -> Tensor:
        """The batch in the teacher's normalisation and order of channels, at its size; padding keeps its value."""
        if self._convert is not None:
            scale, shift, flip = (v.to(inputs) if isinstance(v, Tensor) else v for v in self._convert)
            converted = (inputs.flip(1) if flip else inputs) * scale + shift
            valid = valid_region(inputs, data_samples)
            inputs = converted if valid is None else torch.where(valid, converted, inputs)
        size = self.sized(inputs.shape[2:])
        if size == tuple(inputs.shape[2:]):
            return inputs
        return F.interpolate(inputs, size, mode='bilinear', antialias=True)

    def grid(self, tap: str, shape: Sequence[int], size: Sequence[int]) -> tuple[int, ...]:
        """The shape of a tap's feature as a map; ``size``: height and width of the teacher's images.

        Raises:
            ValueError: another number of tokens than those of ``prefix`` and of the patches.
        """
        if self.prefix is None or len(shape) != 3:
            return tuple(shape)
        h, w = (side // self.patch for side in size)
        if shape[1] != self.prefix + h * w:
            before = shape[1] - h * w
            way = f'set prefix={before}' if 0 <= before < 32 else "patch is the side of the teacher's patches"
            raise ValueError(
                f'teacher tap {tap!r} gives {shape[1]} tokens, but prefix={self.prefix} and the {h} x {w} patches of '
                f'an image of {size[0]} x {size[1]} make {self.prefix + h * w}; {way}'
            )
        return shape[0], shape[2], h, w

    def maps(self, features: dict[str, Feature], size: Sequence[int]) -> dict[str, Feature]:
        """The features with tokens as maps."""
        if self.prefix is None:
            return features

        def as_map(name: str, x: Tensor) -> Tensor:
            shape = self.grid(name, x.shape, size)
            return x if x.dim() != 3 else x[:, self.prefix :].mT.unflatten(2, shape[2:])

        return {name: each(partial(as_map, name), feature) for name, feature in features.items()}


def stated(mean: Any, std: Any) -> Normalisation:
    """The normalisation of a torch module's images, which its config has to state: RGB, in the units 0 to 255.

    Its channels are those of the loaded images, which are BGR, flipped.

    Raises:
        ValueError: none, other than numbers, or one in the units 0 to 1.
    """
    imagenet = 'mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]'
    if mean is None or std is None:
        raise ValueError(
            'teacher: a torch module does not tell how its images are normalised; write mean=[…] and std=[…], of RGB '
            f"in the units 0 to 255, such as ImageNet's {imagenet}"
        )
    mean, std = (
        [arguments.number('teacher', name, v) for v in arguments.sequence('teacher', name, values, 'numbers')]
        for name, values in (('mean', mean), ('std', std))
    )
    if any(mean) and max(map(abs, (*mean, *std))) <= 1:
        inflated = ', '.join(
            f'{k}={[round(255 * v, 3) for v in values]}' for k, values in (('mean', mean), ('std', std))
        )
        raise ValueError(
            f'teacher: mean={mean} is in the units 0 to 1, and the units here are 0 to 255; write {inflated}'
        )
    return mean, std, True


_close = partial(math.isclose, rel_tol=1e-6)
