"""StoredTeacher: a frozen teacher whose outputs are read from files in place of its forward pass."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from .. import arguments
from ..functional import spread_scores, top_scores
from ..hosts import host_of, owner_head, read_model_config, scores_classes
from ..storage.files import near
from ..storage.tensors import TensorFolder, digest
from ..taps import FeatureTaps
from .side import Feature, levels
from .teacher import FrozenTeacher

_OPTIONS = ('folder', 'half', 'topk')
#: What follows a tap's name where its largest scores are stored.
_TOP = ('', '@classes', '@rest')


class StoredTeacher(FrozenTeacher):
    """A frozen teacher with ``stored=…``: the taps that terms read are stored once for each image of training.

    :class:`~lckd_mm.hooks.DistillationHook` goes through the training data before the first iteration, unless the
    folder is complete; the ranks share the work, and a killed run goes on where it was. From then on outputs are read,
    here and in later runs, and the teacher does not run. An image is known by the bits that the teacher sees of it; one
    that is not stored is refused.

    Features are stored as they are computed, in the training's batch size and, under autocast, in its precision. What
    is read is the same to the bit in each run, and what the running teacher computes in a batch in which its rounding
    does not depend on an image's place: so on a CPU with one thread, in batches of one size. Else the two differ by
    rounding.

    Args:
        stored: the folder; or ``dict(folder=…, half=False, topk={})``.
            half: features are stored in float16 and given in float32: the relative error is at most 2**-11, and 2**-25
            in all below 6e-5.
            topk: of segmentors of mmseg: name of a tap of class scores to the number of scores, below that of the
            classes, that are stored at each position: the largest, their classes, and what the others are on average
            (:func:`~lckd_mm.functional.top_scores`), which all others get when read. At temperature 1 KD's gradient for
            the largest is exact, and its target for each of the others the mean of theirs.
        config: the arguments of :class:`~lckd_mm.distillation.FrozenTeacher`.
    Error: by rounding, at most 7e-7 of the largest score (7 nets of torchvision, random weights, a CPU with 2 threads,
        batches of 5).
    Raises:
        KeyError, ValueError: a wrong key or value, or bn='batch', with which an image's features depend on the others.
    Example: ``teacher=dict(model='my_teacher.py', checkpoint='teacher.pth', stored='work_dirs/stored/my_teacher')``
    """

    def __init__(self, stored: str | dict, **config: Any):
        super().__init__(**config)
        options = dict(folder=stored) if isinstance(stored, str) else stored
        if not isinstance(options, Mapping) or 'folder' not in options or set(options) - {*_OPTIONS}:
            raise KeyError(
                f'teacher: stored must be a folder, or a dict of {", ".join(_OPTIONS)}, folder at least, got {stored!r}'
            )
        if self.bn == 'batch':
            raise ValueError(
                "teacher: with bn='batch' its outputs for an image depend on the other images of the batch, so they "
                "cannot be stored; remove stored, or write bn='eval'"
            )
        self.folder = TensorFolder(arguments.string('teacher: stored', 'folder', options['folder']), 'teacher')
        self.half = arguments.boolean('teacher: stored', 'half', options.get('half', False))
        topk = options.get('topk') or {}
        if not isinstance(topk, Mapping):
            raise ValueError(f'teacher: stored: topk must name taps, as in topk=dict(logits=8), got {topk!r}')
        self.topk = {tap: arguments.integer('teacher: stored', f'topk of {tap!r}', k) for tap, k in topk.items()}
        source = {k: v for k, v in config.items() if k not in ('checkpoint', 'allow')}
        if config.get('model') is not None:
            source['model'] = read_model_config(config['model'], 'teacher')[0]
        self._config = digest([json.dumps(source, sort_keys=True, default=_named)])
        #: What is stored: the manifest, once the folder is open.
        self.description: dict[str, Any] | None = None
        self._key = ''

    @property
    def origin(self) -> str:
        return f'{super().origin}, its outputs stored in {self.folder}'

    def settle(self, taps: FeatureTaps, size: tuple[int, int]) -> None:
        super().settle(taps, size)
        for name, k in self.topk.items():
            if name not in taps.traces:
                raise KeyError(f'teacher: stored: topk names no tap {name!r}, the taps are {", ".join(taps.addresses)}')
            shape, address = taps.traces[name].shapes[0], taps.resolved[name]
            scores = host_of(self.model) == 'mmseg' and address.call != '*' and len(shape) == 4
            if not scores or not scores_classes(owner_head(self.model, address.path), shape[1]):
                raise ValueError(
                    f'teacher: stored: topk is for class scores of a segmentor of mmseg, and the tap {name!r} gives '
                    'other features; remove it'
                )
            if k >= shape[1]:
                raise ValueError(
                    f'teacher: stored: the tap {name!r} has {shape[1]} classes, so its topk={k} would leave out none; '
                    f'write at most {shape[1] - 1}, or remove it'
                )

    def open(self, taps: FeatureTaps, names: Iterable[str], device: torch.device) -> bool:
        """Open the folder for these taps, in the current precision; returns whether all images are stored.

        Raises:
            ValueError: what is stored is another teacher's, of other taps or in another precision.
        """
        autocast = torch.is_autocast_enabled(device.type)
        own = dict(
            version=1,
            weights=digest(part for item in self.model.state_dict().items() for part in item),
            config=self._config,
            taps={name: str(taps.resolved[name]) for name in sorted(names)},
            topk=self.topk,
            half=self.half,
            autocast=str(torch.get_autocast_dtype(device.type)) if autocast else None,
        )
        self.description = found = self.folder.description() or own
        for key, value in own.items():
            # A run may read fewer taps.
            there = found.get(key)
            if key == 'taps' and isinstance(there, dict):
                there = {name: address for name, address in there.items() if name in value}
            if there != value:
                raise ValueError(
                    f'teacher: the outputs stored in {self.folder} are those of another one, with {key}={there!r}, and '
                    f'here it is {value!r}; set stored to another folder, which the next run fills, or take back the '
                    'change'
                )
        self._key = digest([json.dumps(found, sort_keys=True)])
        return found is not own

    def keys(self, inputs: Tensor, data_samples: list | None) -> list[str]:
        """The digest of each image of a batch, as the teacher sees it."""
        images = self.convert(inputs, data_samples).detach().cpu()
        samples = data_samples or [None] * len(images)
        return [digest([str(getattr(s, 'img_shape', None)), x], self._key) for x, s in zip(images, samples)]

    def check(self, inputs: Tensor, data_samples: list | None) -> None:
        """Raise ValueError if an image of a batch is not stored."""
        self._refuse([self.folder.has(key) for key in self.keys(inputs, data_samples)], inputs, data_samples)

    def write(self, taps: FeatureTaps, inputs: Tensor, data_samples: list | None) -> list[int]:
        """Store a batch of the student's inputs; returns the bytes of each file that was missing.

        Raises:
            ValueError: a tap's features are not one for each image, or too large for half precision.
        """
        keys = self.keys(inputs, data_samples)
        missing = [i for i, key in enumerate(keys) if not self.folder.has(key)]
        if not missing:
            return []
        tensors, axes = {}, {}
        for name, feature in super().__call__(taps, self.description['taps'], inputs, data_samples).items():
            for level, x in enumerate(levels(feature)):
                if len(x) != len(keys):
                    raise ValueError(
                        f'teacher tap {name!r}: it gives {len(x)} rows for {len(keys)} images, which cannot be stored '
                        'for each image; tap a feature of whole images, or remove stored'
                    )
                parts = _largest(x, self.topk[name]) if name in self.topk else [x]
                tensors |= {f'{name}#{level}{part}': self._narrowed(name, y) for part, y in zip(_TOP, parts)}
                # In another layout in memory, sums would be rounded otherwise.
                order = sorted(range(x.dim()), key=x.stride, reverse=True)
                axes[f'{name}#{level}@axes'] = torch.tensor(order, dtype=torch.uint8)
        return [self.folder.write(keys[i], {name: x[i] for name, x in tensors.items()} | axes) for i in missing]

    def __call__(
        self, taps: FeatureTaps, names: Iterable[str], inputs: Tensor, data_samples: list | None, **_: Any
    ) -> dict[str, Any]:
        """The stored features for a batch of the student's inputs.

        Raises:
            ValueError: the folder is not open, an image is not stored, or a file is damaged.
        """
        if self.description is None:
            raise ValueError(
                'teacher: its stored outputs are opened before the first iteration; add '
                "default_hooks=dict(distillation=dict(type='lckd_mm.DistillationHook')), as tools/train.py does"
            )
        found = [self.folder.read(key) for key in self.keys(inputs, data_samples)]
        self._refuse(found, inputs, data_samples)
        return {name: self._feature(taps, name, found, inputs.device) for name in names}

    def _feature(self, taps: FeatureTaps, name: str, found: list[dict[str, Tensor]], device: torch.device) -> Feature:
        feature = []
        for level in range(sum(key.startswith(f'{name}#') and key.endswith('@axes') for key in found[0])):
            key = f'{name}#{level}'
            parts = _TOP if name in self.topk else _TOP[:1]
            x, *top = (torch.stack([one[key + part] for one in found]).to(device) for part in parts)
            x = x.float() if self.half else x
            if top:
                x = spread_scores(x, top[0], top[1].float(), taps.traces[name].shapes[0][1])
            order = found[0][f'{key}@axes'].tolist()
            feature.append(x.permute(order).contiguous().permute([order.index(axis) for axis in range(x.dim())]))
        return feature if taps.resolved[name].call == '*' else feature[0]

    def _narrowed(self, name: str, x: Tensor) -> Tensor:
        """In the type in which it is stored."""
        if not self.half or not x.is_floating_point():
            return x
        if not x.half().isfinite().all():
            raise ValueError(
                f'teacher tap {name!r}: it has values up to {float(x.abs().max()):.3g}, and half precision ends at '
                '65504; remove half from stored'
            )
        return x.half()

    def _refuse(self, found: list[Any], inputs: Tensor, data_samples: list | None) -> None:
        """Raise ValueError for the first image that is not stored."""
        if all(found):
            return
        i = [bool(one) for one in found].index(False)
        path = getattr(data_samples[i], 'img_path', None) if data_samples else None
        raise ValueError(
            f'teacher: the image {path and near(path)!r}, of {inputs.shape[2]} x {inputs.shape[3]}, is not stored in '
            f'{self.folder} as the student sees it: it is of another data set, has another size, or is augmented or '
            f'padded otherwise; train on the images that are stored, or remove {near(self.folder.manifest)!r}, and the '
            'next run adds those of its data'
        )


def _largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    values, classes, rest = top_scores(scores.float(), k)
    return values, classes.to(torch.uint8 if scores.shape[1] <= 256 else torch.int32), rest


def _named(value: Any) -> str:
    """A class, a function or an object in a config, as text without its address in memory."""
    return str(getattr(value, '__qualname__', type(value).__qualname__))
