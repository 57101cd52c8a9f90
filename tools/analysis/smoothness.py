"""Smoothness of a net around images: norms, local Lipschitz constants and bounds per stage, and changes under noise."""

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from torch import Tensor, nn

from lckd_mm.contexts import eval_mode, preserved_rng
from lckd_mm.functional import graph_bound, local_lipschitz, transmitting_norms
from lckd_mm.functional.shapes import as_maps, mean_length
from lckd_mm.hosts import valid_region
from lckd_mm.losses.lipschitz import LipschitzLoss
from lckd_mm.registry import resolved
from lckd_mm.taps import FeatureTaps
from lckd_mm.taps.presets import preset_taps


@dataclass
class Net:
    """A net under study: model, traced taps, and the conversion of the student's preprocessed images to its input."""

    model: nn.Module
    taps: FeatureTaps
    convert: Callable[[Tensor, list | None], Tensor] = lambda inputs, samples: inputs


class Point(NamedTuple):
    """A tap, or one level of a tap with several maps."""

    tap: str
    level: int | None = None

    def __str__(self) -> str:
        return self.tap if self.level is None else f'{self.tap}[{self.level}]'

    def of(self, features: Mapping[str, Any]) -> Tensor:
        return features[self.tap] if self.level is None else features[self.tap][self.level]


class Stage(NamedTuple):
    """Two consecutive points of a net."""

    front: Point
    back: Point

    def __str__(self) -> str:
        return f'{self.front} → {self.back}'


def lipschitz_links(cfg: Config, student: nn.Module) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """The pairs of consecutive taps of a config's Lipschitz terms, each once, as (student's, teacher's).

    A term on one tap, with several levels, gives this tap alone. A config without Lipschitz terms gives its taps named
    stage1, stage2, …; failing that, the stage names of the preset 'backbone' for the student, for both nets.

    Raises:
        ValueError: no stages in the config, and a model without a backbone; or a tap of one net that terms compare
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
    kind = resolved(loss.get('type'))
    return (isinstance(kind, type) and issubclass(kind, LipschitzLoss)) or _is_lipschitz(loss.get('loss'))


def stages_of(net: Net, names: Sequence[str]) -> list[Stage]:
    """The pairs of consecutive taps; for a single tap, the pairs of its consecutive levels."""
    points = [Point(name) for name in names]
    if len(names) == 1:
        points = [Point(names[0], level) for level in range(len(net.taps.traces[names[0]].shapes))]
    return [Stage(*pair) for pair in pairwise(points)]


def features_of(net: Net, names: Iterable[str], inputs: Tensor, samples: list | None) -> dict:
    """A net's tapped features for images from the student's preprocessor; the forward stops after the last tap."""
    with net.taps.record(net.model, names, stop=True) as features:
        net.model(net.convert(inputs, samples), samples, mode='tensor')
    return features


def stage_map(
    net: Net, stage: Stage, inputs: Tensor, samples: list | None
) -> tuple[Callable[[Tensor], Tensor], Tensor] | None:
    """The function from a stage's front features to its back features, with the front features; None if there is none.

    The front tap's tensor is replaced and the forward continues from it. The function exists if the back tap depends on
    the front tap alone: autograd finds a path to the back tap from the replaced tensor, and none from the images. So it
    does not exist with a skip connection around the tap, or in a pyramid whose finer levels come from coarser ones.
    """
    if any(point.level is not None or net.taps.addresses[point.tap].call == '*' for point in stage):
        return None
    start, end = (point.tap for point in stage)

    def function(front: Tensor, images: Tensor = inputs) -> Tensor:
        with net.taps.substitute(net.model, start, front):
            return features_of(net, [end], images, samples)[end]

    with torch.enable_grad():
        images = inputs.detach().clone().requires_grad_()
        front = features_of(net, [start], images, samples)[start].detach().requires_grad_()
        back = function(front.clone(), images)
        if not back.requires_grad:
            return None
        through, around = torch.autograd.grad(back.sum(), (front, images), allow_unused=True)
    return (function, front.detach()) if through is not None and around is None else None


@torch.no_grad()
def sigmas(net: Net, stages: Sequence[Stage], inputs: Tensor, samples: list | None) -> tuple[Tensor, Tensor]:
    """Two tensors ``(stages, B)``: each stage's transmitting norm of its raw maps, and that divided by their lengths.

    A map's length is the root mean square of its vectors' lengths; the quotient is at most about 1.
    """
    names = dict.fromkeys(point.tap for stage in stages for point in stage)
    features = features_of(net, names, inputs, samples)
    aspect = inputs.shape[2] / inputs.shape[3]
    norms, shares = [], []
    for stage in stages:
        maps = as_maps([point.of(features) for point in stage], aspect)
        norms.append(transmitting_norms(maps)[0])
        shares.append(norms[-1] / (mean_length(maps[0]) * mean_length(maps[1])))
    return torch.stack(norms), torch.stack(shares)


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


def relative_change(clean: Tensor, noisy: Tensor) -> Tensor:
    """``(B,)``: distance between noisy and clean features, divided by the norm of the clean ones, per image."""
    length = torch.linalg.vector_norm(clean.flatten(1), dim=1)
    return torch.linalg.vector_norm((noisy - clean).flatten(1), dim=1) / length.clamp(min=1e-12)


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
    points = list(dict.fromkeys(chain.from_iterable(stages)))
    names = list(dict.fromkeys(point.tap for point in points))
    rows = {str(stage): dict(sigma=[], normalised=[], constant=[], bound=None) for stage in stages}
    taps = {str(point): dict(image=[], changes={str(level): [] for level in levels}) for point in points}
    noises = [GaussianNoise(level, seed) for level in levels]
    unconverged = 0

    def constants(function: Callable[[Tensor], Tensor], at: Tensor) -> list[float]:
        nonlocal unconverged
        values, residual = local_lipschitz(function, at, tol, residual=True)
        unconverged += int((residual > 2 * tol).sum())
        return values.tolist()

    with eval_mode(net.model), preserved_rng():
        for inputs, samples in images:
            for row, norms, shares in zip(rows.values(), *sigmas(net, stages, inputs, samples), strict=True):
                row['sigma'] += norms.tolist()
                row['normalised'] += shares.tolist()
            for stage, row in zip(stages, rows.values(), strict=True):
                if 'constant' not in without and row['constant'] is not None:
                    found = stage_map(net, stage, inputs, samples)
                    row['constant'] = found and row['constant'] + constants(*found)
            for point, row in zip(points, taps.values(), strict=True):
                if 'image' not in without:
                    to_point = lambda x, p=point, s=samples: p.of(features_of(net, [p.tap], x, s))  # noqa: E731
                    row['image'] += constants(to_point, inputs)
            if levels:
                clean = features_of(net, names, inputs, samples)
            for level, noise in zip(levels, noises, strict=True):
                noisy = features_of(net, names, noise(inputs, samples), samples)
                for point, row in zip(points, taps.values(), strict=True):
                    row['changes'][str(level)] += relative_change(point.of(clean), point.of(noisy)).tolist()
        inputs, samples = images[0]
        for stage, row in zip(stages, rows.values(), strict=True):
            # A bound holds at the size of one image.
            found = None if 'bound' in without else stage_map(net, stage, inputs[:1], samples and samples[:1])
            try:
                row['bound'] = found and graph_bound(*found, tol).item()
            except ValueError as error:
                row['bound_refused'] = str(error)
    return dict(stages=rows, taps=taps, unconverged=unconverged)
