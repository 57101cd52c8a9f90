"""Smoothness of a net around images: norms, local Lipschitz constants and bounds per stage, and changes under noise."""

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from torch import Tensor, nn

from ..contexts import eval_mode, preserved_rng
from ..functional import graph_bound, local_lipschitz, transmitting_norms
from ..functional.lipschitz.maps import as_maps, mean_length
from ..hosts import valid_region
from ..losses.lipschitz import LipschitzLoss
from ..registry import MODELS
from ..taps import FeatureTaps
from ..taps.presets import preset_taps

#: Maps images from the student's preprocessor, with their samples, to a net's own input.
Convert = Callable[[Tensor, list | None], Tensor]


@dataclass
class Net:
    """A net under study: model, traced taps, and the conversion of the student's preprocessed images to its input."""

    model: nn.Module
    taps: FeatureTaps
    convert: Convert = lambda inputs, samples: inputs


@dataclass(frozen=True)
class Stage:
    """Two consecutive taps of a chain; ``levels`` are indices into taps with several maps, None for taps with one."""

    front: str
    back: str
    levels: tuple[int | None, int | None] = (None, None)

    @property
    def label(self) -> str:
        return f'{_point(self.front, self.levels[0])} → {_point(self.back, self.levels[1])}'


def lipschitz_links(cfg: Config, student: nn.Module) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """The pairs of consecutive taps of a config's Lipschitz terms, each once, as (student's, teacher's).

    A term on one tap, with several levels, gives this tap alone. A config without Lipschitz terms gives its taps named
    stage1, stage2, …; failing that, the stage names of the preset 'backbone' for the student, for both nets.

    Raises:
        ValueError: no stages in the config, and a backbone without a preset; or a tap of one net that terms compare
            with two taps of the other.
    """
    chains = []
    for term in (cfg.model.get('terms') or {}).values():
        if term is not None and _is_lipschitz(term.loss):
            sides = [term.get(side, term.get('on')) for side in ('student', 'teacher')]
            chains.append([[names] if isinstance(names, str) else names for names in sides])
    if not chains:
        taps = cfg.model.get('taps')
        parts = taps if isinstance(taps, (list, tuple)) else [taps]
        names = [name for part in parts if isinstance(part, Mapping) for name in part]
        names = [name for name in names if re.fullmatch(r'stage\d+', name)]
        chains = [[names if len(names) > 1 else list(preset_taps(student, 'backbone'))] * 2]
    links = [link for chain in chains for link in zip(*(_pairs(side) for side in chain), strict=True)]
    for way in (links, [(theirs, own) for own, theirs in links]):
        partner: dict[str, str] = {}
        for tap, other in (pair for link in way for pair in zip(*link)):
            if partner.setdefault(tap, other) != other:
                raise ValueError(
                    f'the Lipschitz terms compare the tap {tap!r} with both {partner[tap]!r} and {other!r}; remove one '
                    'of these terms with --cfg-options model.terms.NAME=None'
                )
    return list(dict.fromkeys(links))


def _pairs(names: Sequence[str]) -> list[tuple[str, ...]]:
    return list(pairwise(names)) if len(names) > 1 else [tuple(names)]


def _is_lipschitz(loss: Any) -> bool:
    """Whether a loss config is a LipschitzLoss (or subclass, as LONDONLoss), possibly wrapped by another loss."""
    if loss is None:
        return False
    kind = loss.get('type')
    kind = MODELS.get(kind) if isinstance(kind, str) else kind
    return (isinstance(kind, type) and issubclass(kind, LipschitzLoss)) or _is_lipschitz(loss.get('loss'))


def stages_of(net: Net, names: Sequence[str]) -> list[Stage]:
    """The pairs of consecutive taps; for a single tap, the pairs of its consecutive levels."""
    if len(names) == 1:
        count = len(net.taps.traces[names[0]].shapes)
        return [Stage(names[0], names[0], pair) for pair in pairwise(range(count))]
    return [Stage(*pair) for pair in pairwise(names)]


def points_of(stages: Iterable[Stage]) -> list[tuple[str, int | None]]:
    """The (tap, level) at which stages start and end, without duplicates, in order."""
    return list(dict.fromkeys(end for stage in stages for end in zip((stage.front, stage.back), stage.levels)))


def features_of(net: Net, names: Iterable[str], inputs: Tensor, samples: list | None) -> dict:
    """A net's tapped features for images from the student's preprocessor; the forward stops after the last tap."""
    with net.taps.record(net.model, names, stop=True) as features:
        net.model(net.convert(inputs, samples), samples, mode='tensor')
    return features


def image_map(net: Net, tap: str, level: int | None, samples: list | None) -> Callable[[Tensor], Tensor]:
    """The function from preprocessed images to a tap, or to one level of it."""
    return lambda images: _level(features_of(net, [tap], images, samples)[tap], level)


def stage_map(net: Net, stage: Stage, inputs: Tensor, samples: list | None) -> Callable[[Tensor], Tensor] | None:
    """The function from a stage's front features to its back features, or None if there is none.

    The front tap's tensor is replaced and the forward continues from it. The function exists if the back tap depends on
    the front tap alone: autograd finds a path to the back tap from the replaced tensor, and none from the images. So it
    does not exist with a skip connection around the tap, or in a pyramid whose finer levels come from coarser ones.
    """
    if stage.levels != (None, None) or '*' in (net.taps.addresses[tap].call for tap in (stage.front, stage.back)):
        return None

    def function(front: Tensor, images: Tensor = inputs) -> Tensor:
        with (
            net.taps.record(net.model, [stage.back], stop=True) as features,
            net.taps.substitute(net.model, stage.front, front),
        ):
            net.model(net.convert(images, samples), samples, mode='tensor')
        return features[stage.back]

    with torch.enable_grad():
        images = inputs.detach().clone().requires_grad_()
        front = features_of(net, [stage.front], images, samples)[stage.front].detach().requires_grad_()
        back = function(front.clone(), images)
        sources = (front, images)
        if not back.requires_grad:
            return None
        through, around = torch.autograd.grad(back.sum(), sources, allow_unused=True)
    return function if through is not None and around is None else None


@torch.no_grad()
def sigmas(net: Net, stages: Sequence[Stage], inputs: Tensor, samples: list | None) -> tuple[Tensor, Tensor]:
    """Two tensors ``(stages, B)``: each stage's transmitting norm of its raw maps, and that divided by their lengths.

    A map's length is the root mean square of its vectors' lengths; the quotient is at most about 1.
    """
    names = list(dict.fromkeys(name for stage in stages for name in (stage.front, stage.back)))
    features = features_of(net, names, inputs, samples)
    aspect = inputs.shape[2] / inputs.shape[3]
    norms, shares = [], []
    for stage in stages:
        ends = zip((stage.front, stage.back), stage.levels)
        maps = as_maps([_level(features[tap], level) for tap, level in ends], aspect)
        norms.append(transmitting_norms(maps)[0])
        shares.append(norms[-1] / (mean_length(maps[0]) * mean_length(maps[1])))
    return torch.stack(norms), torch.stack(shares)


def stage_constants(
    net: Net, stage: Stage, inputs: Tensor, samples: list | None, tol: float = 1e-3
) -> tuple[Tensor, Tensor] | None:
    """A stage's local Lipschitz constants ``(B,)`` at the images' features, and residuals; None without a stage map."""
    function = stage_map(net, stage, inputs, samples)
    if function is None:
        return None
    return local_lipschitz(function, _front(net, stage, inputs, samples), tol, residual=True)


def stage_bound(net: Net, stage: Stage, inputs: Tensor, samples: list | None, tol: float = 1e-3) -> Tensor | None:
    """:func:`~lckd_mm.functional.graph_bound` of a stage at the size of one image; None without a stage map.

    Raises:
        ValueError: an operation in the stage whose constant is not known.
    """
    inputs, samples = inputs[:1], samples and samples[:1]
    function = stage_map(net, stage, inputs, samples)
    return None if function is None else graph_bound(function, _front(net, stage, inputs, samples), tol)


@torch.no_grad()
def _front(net: Net, stage: Stage, inputs: Tensor, samples: list | None) -> Tensor:
    return features_of(net, [stage.front], inputs, samples)[stage.front]


class GaussianNoise:
    """Noise on preprocessed images; identical for every net that gets the same images in the same order.

    Args:
        level: standard deviation, in units of the preprocessed image (pixels divided by the preprocessor's std).
        seed: seed of a separate generator, on the CPU.
    """

    def __init__(self, level: float, seed: int):
        self.level = level
        self.generator = torch.Generator('cpu').manual_seed(seed)

    def __call__(self, inputs: Tensor, samples: list | None) -> Tensor:
        """The images with noise; padding is left unchanged."""
        noise = torch.randn(inputs.shape, generator=self.generator, dtype=torch.float32)
        noisy = inputs + self.level * noise.to(inputs)
        valid = valid_region(inputs, samples)
        return noisy if valid is None else torch.where(valid, noisy, inputs)


@torch.no_grad()
def relative_changes(clean: dict, noisy: dict, points: Iterable[tuple[str, int | None]]) -> Tensor:
    """``(points, B)``: distance between noisy and clean features, divided by the norm of the clean ones, per image."""
    changes = []
    for tap, level in points:
        before, after = (_level(features[tap], level).flatten(1) for features in (clean, noisy))
        length = torch.linalg.vector_norm(before, dim=1)
        changes.append(torch.linalg.vector_norm(after - before, dim=1) / length.clamp(min=1e-12))
    return torch.stack(changes)


def metrics_under_noise(
    net: Net, preprocessor: nn.Module, loader: Any, evaluator: Any, noise: GaussianNoise | None = None
) -> dict[str, float]:
    """The config's metrics of a net on a whole loader, with noise added after the preprocessor.

    Args:
        preprocessor: the student's; it prepares the images of every net.
        loader: an mmengine test loader. evaluator: config of the evaluator, or of its metrics.
    """
    metrics = evaluator['metrics'] if isinstance(evaluator, Mapping) and 'metrics' in evaluator else evaluator
    evaluator = Evaluator(copy.deepcopy(metrics))
    evaluator.dataset_meta = getattr(loader.dataset, 'metainfo', None)
    with eval_mode(net.model), preserved_rng():
        for batch in loader:
            data = preprocessor(copy.deepcopy(batch), False)
            inputs, samples = data['inputs'], data['data_samples']
            if noise is not None:
                inputs = noise(inputs, samples)
            predictions = net.model(net.convert(inputs, samples), samples, mode='predict')
            evaluator.process(predictions, batch)
        metrics = evaluator.evaluate(len(loader.dataset))
    return {name: float(value) for name, value in metrics.items() if np.ndim(value) == 0 and not isinstance(value, str)}


def first_images(
    loader: Any, preprocessor: nn.Module, count: int, batch: int
) -> Iterator[tuple[Tensor, list[Any] | None]]:
    """The first ``count`` images of a test loader, preprocessed, with their samples, at most ``batch`` at a time."""
    with preserved_rng():
        for data in loader:
            data = preprocessor(data, False)
            inputs, samples = data['inputs'], data['data_samples']
            for i in range(0, min(len(inputs), count), batch):
                end = min(i + batch, count, len(inputs))
                yield inputs[i:end], samples and samples[i:end]
            count -= len(inputs)
            if count <= 0:
                return


def measure(
    net: Net,
    stages: Sequence[Stage],
    images: Sequence[tuple[Tensor, list | None]],
    levels: Sequence[float] = (),
    seed: int = 0,
    without: Sequence[str] = (),
    tol: float = 1e-3,
) -> dict[str, Any]:
    """Norms, local constants, bounds and changes under noise of a net on a few images, as plain numbers.

    Args:
        images: preprocessed batches and their samples, as from :func:`first_images`.
        levels, seed: of the :class:`GaussianNoise`. without: any of 'constant', 'image' and 'bound', to skip.
        tol: for the local constants; their relative error is about its square.
    Returns:
        ``stages``: label to sigma, normalised and constant (one value per image; constant is None if the stage is not a
        function), and bound (one value; None also for an unknown operation, named in ``bound_refused``);
        ``taps``: label to image (local constants from the image on, one per image) and changes (noise level to one
        value per image);
        ``unconverged``: the number of local constants whose residual stayed above twice ``tol``.
    """
    points = points_of(stages)
    names = list(dict.fromkeys(tap for tap, _ in points))
    rows = {stage.label: dict(sigma=[], normalised=[], constant=[], bound=None) for stage in stages}
    taps = {_point(*point): dict(image=[], changes={str(level): [] for level in levels}) for point in points}
    noises = [GaussianNoise(level, seed) for level in levels]
    unconverged = 0
    with eval_mode(net.model), preserved_rng():
        for inputs, samples in images:
            for row, norms, shares in zip(rows.values(), *sigmas(net, stages, inputs, samples), strict=True):
                row['sigma'] += norms.tolist()
                row['normalised'] += shares.tolist()
            for stage, row in zip(stages, rows.values(), strict=True):
                if 'constant' in without or row['constant'] is None:
                    continue
                found = stage_constants(net, stage, inputs, samples, tol)
                if found is None:
                    row['constant'] = None
                    continue
                row['constant'] += found[0].tolist()
                unconverged += int((found[1] > 2 * tol).sum())
            for point, row in zip(points, taps.values(), strict=True):
                if 'image' not in without:
                    values, rest = local_lipschitz(image_map(net, *point, samples), inputs, tol, residual=True)
                    row['image'] += values.tolist()
                    unconverged += int((rest > 2 * tol).sum())
            if levels:
                clean = features_of(net, names, inputs, samples)
            for level, noise in zip(levels, noises, strict=True):
                noisy = features_of(net, names, noise(inputs, samples), samples)
                for row, values in zip(taps.values(), relative_changes(clean, noisy, points), strict=True):
                    row['changes'][str(level)] += values.tolist()
        if 'bound' not in without:
            for stage, row in zip(stages, rows.values(), strict=True):
                try:
                    bound = stage_bound(net, stage, *images[0], tol)
                    row['bound'] = None if bound is None else bound.item()
                except ValueError as error:
                    row['bound_refused'] = str(error)
    return dict(stages=rows, taps=taps, unconverged=unconverged)


def _point(tap: str, level: int | None) -> str:
    return tap if level is None else f'{tap}[{level}]'


def _level(feature: Tensor | list[Tensor], level: int | None) -> Tensor:
    return feature if level is None else feature[level]
