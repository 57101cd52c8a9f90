"""Dry runs on made-up images while a model is built, to learn what taps give and check that every term accepts it."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from .. import arguments
from ..contexts import eval_mode
from ..errors import one_line
from ..hosts import fabricate_samples, host_of, image_channels, lacks_operator, own_sizes, run_once, training_size
from ..taps import LIST_ALL, PASSES, FeatureTaps, Pass, TapError, Trace
from ..taps.presets import preset_taps
from .judge import Judge
from .objective import Objective
from .side import Connected, Feature, flat
from .term import Batch, Term

#: Tap name to address, a preset's name, or a list of these.
Taps = dict[str, str] | str | Sequence[dict[str, str] | str] | None


def merge_taps(role: str, model: nn.Module, both: Any, own: Any, size: tuple[int, int] | None = None) -> FeatureTaps:
    """The taps of one net: those given for both, overridden by its own, with presets expanded.

    Args:
        size: height and width of the image on which presets are found; by default those of training.
    """
    addresses: dict[str, str] = {}
    for key, source in (('taps', both), (f'{role}_taps', own)):
        for taps in source if isinstance(source, (list, tuple)) else [source]:
            if isinstance(taps, str):
                taps = preset_taps(model, taps, size)
            elif taps is not None and not isinstance(taps, Mapping):
                raise TypeError(
                    f'{key}: expected a dict of name to address, a preset, or a list of these, got '
                    f'{type(taps).__name__} {taps!r}'
                )
            addresses.update(taps or {})
    return FeatureTaps(addresses, role)


_SIZES = (32, 64, 96, 128, 224, 256, 384, 512)


@dataclass
class MadeUpImage:
    """The image of the dry run: as many channels as the student takes, and a size.

    Args:
        nets: the student, or all nets that learn together.
        source: where the size comes from: the option that sets it, or the student's 'data_preprocessor'.
    """

    channels: int
    size: tuple[int, int]
    nets: list[nn.Module] = field(default_factory=list)
    source: str = 'dry_run_size='

    @classmethod
    def of(cls, who: str, size: Any, nets: Iterable[nn.Module], option: str = 'dry_run_size=') -> 'MadeUpImage':
        """The image for these nets; ``size`` is one integer or two, None for the size of the first net's training.

        ``option`` is what sets the size, as it is written before a number.
        """
        nets = list(nets)
        channels = image_channels(nets[0])
        if size is None:
            known = getattr(nets[0].data_preprocessor, 'size', None) is not None
            return cls(channels, training_size(nets[0]), nets, 'data_preprocessor' if known else option)
        sides = arguments.integers(who, 'dry_run_size', [size, size] if isinstance(size, int) else size)
        if len(sides) != 2:
            raise ValueError(f'{who}: dry_run_size must be one number, or height and width, got {size!r}')
        return cls(channels, tuple(sides), nets, option)

    def __str__(self) -> str:
        return f'{_by(self.size)}' + (f' with {self.channels} channels' if self.channels != 3 else '')

    def run(self, model: nn.Module, one: Pass, size: tuple[int, int] | None = None) -> Any:
        """Run a net once on the image, or on one of another ``size``."""
        return run_once(model, size or self.size, one.mode, channels=self.channels, training=one.training)


def trace_taps(taps: FeatureTaps, model: nn.Module, image: MadeUpImage, later: bool = False) -> None:
    """Run a net on the made-up image, to resolve its taps and learn channels and calls, and which pass fires each.

    Taps that do not fire in a plain forward are sought in a prediction, with the loss, and with the loss and the
    branches of training. What a prediction shows is read with the loss where that shows the same.

    Args:
        later: leave open, with a note in the log, the taps behind an operator that the CPU lacks.
    Raises:
        ValueError: no run reaches a tap, or it never fires.
    """
    taps.check_paths(model)
    failures: dict[Pass, Exception] = {}
    for one in PASSES:
        silent = taps.addresses.keys() - taps.traces.keys()
        if not silent:
            break
        try:
            taps.trace(model, partial(image.run, model, one), silent)
        except TapError:
            raise
        except Exception as error:  # a host may raise anything on an image that does not fit
            failures[one] = error
        for name in silent & taps.traces.keys():
            taps.traces[name].passes = (one,)
    _prefer_loss(taps, model, image)
    silent = taps.addresses.keys() - taps.traces.keys()
    if silent:
        missing = [error for error in failures.values() if lacks_operator(model, error)]
        if not (later and missing):
            raise ValueError(_unreached(taps, model, image, min(silent), failures))
        print_log(
            f'{taps.role}: on the CPU no run reaches the taps {", ".join(map(repr, sorted(silent)))} '
            f'({one_line(missing[0])}); they are read first on the device of the training',
            logger='current',
        )
    _count_calls(taps, model, image)
    last = max((trace.passes[0] for trace in taps.traces.values()), key=PASSES.index, default=Pass())
    others = {n: str(taps.resolved[n]) for n, trace in taps.traces.items() if trace.passes[0] != last}
    if others:
        _add_pass(taps, model, image, last, others)


def _prefer_loss(taps: FeatureTaps, model: nn.Module, image: MadeUpImage) -> None:
    """Read what a prediction shows with the loss, where that shows the same, or all layers of a decoder.

    A prediction of mmseg warns in each batch of images of several sizes, and with mode='slide' runs on parts of them;
    one of DETR scores the last layer alone.
    """
    predicted = {n: str(taps.resolved[n]) for n, trace in taps.traces.items() if trace.passes == (Pass('predict'),)}
    found = _add_pass(taps, model, image, Pass('loss'), predicted) if predicted else {}
    for name in predicted:
        trace = found.get(name)
        if trace is not None and trace.queries is not None and trace.queries == taps.traces[name].queries:
            taps.traces[name] = trace
            trace.passes = (Pass('loss'),)
        taps.traces[name].passes = taps.traces[name].passes[::-1]


def _count_calls(taps: FeatureTaps, model: nn.Module, image: MadeUpImage) -> None:
    """Read taps of all calls in the pass with the loss, as the student does, where that makes more or fewer calls."""
    several = {n: str(a) for n, a in taps.resolved.items() if a.call == '*' and n in taps.traces}
    several = {name: address for name, address in several.items() if Pass() in taps.traces[name].passes}
    if not several:
        return
    for one in PASSES[2:]:  # some losses need the branches of training
        again, ended = FeatureTaps(several, taps.role), []
        with contextlib.suppress(Exception):  # then they keep their pass
            again.trace(model, lambda one=one, ended=ended: ended.append(image.run(model, one)))
        if ended:
            break
    for name, trace in again.traces.items():
        if ended and trace.calls != taps.traces[name].calls:
            trace.passes = (one,)
            taps.traces[name] = trace


def _add_pass(
    taps: FeatureTaps, model: nn.Module, image: MadeUpImage, one: Pass, others: dict[str, str]
) -> dict[str, Trace]:
    """Note which of the taps fire in this pass as they do in their own, so that one pass can read all.

    Returns:
        What this pass shows of them.
    """
    again = FeatureTaps(others, taps.role)
    with contextlib.suppress(Exception):  # then they keep their own pass
        again.trace(model, partial(image.run, model, one))
    for name, trace in again.traces.items():
        if trace.agrees(taps.traces[name]):
            taps.traces[name].passes += (one,)
    return again.traces


def _unreached(
    taps: FeatureTaps, model: nn.Module, image: MadeUpImage, tap: str, failures: dict[Pass, Exception]
) -> str:
    """The sentence for a tap that no run reaches."""
    if not failures.keys() >= {Pass(), Pass('predict')}:
        ends = [f'mode={one.mode!r} ends in: {one_line(error)}' for one, error in failures.items()]
        return (
            f'{taps.role} tap {tap!r}: {str(taps.addresses[tap])!r} never fires: no forward calls this module '
            '(hosts call a head by its methods: tap a layer inside, such as head.fc or decode_head.conv_seg'
            f'{"; a run with " + ends[0] if ends else ""}); {LIST_ALL}'
        )
    error = failures[Pass()]
    text = f'{taps.role}: {type(model).__name__} fails on one image of {image}: {one_line(error)}; '
    if lacks_operator(model, error):
        return text + 'one of its operators runs on other devices alone: train on a GPU'
    own = image_channels(model)
    if own != image.channels:
        return text + (
            f'it takes images with {own} channels, and it sees those of the student, with {image.channels}: give both '
            'the same kind of images'
        )
    return text + _way(taps, model, image)


def _way(taps: FeatureTaps, model: nn.Module, image: MadeUpImage) -> str:
    """A size that was tried and works for this net and for those that see the same images, and where to set it."""
    alone = host_of(model) is None  # a torch module as teacher, whose images are resized for it
    if alone:
        image = replace(image, nets=[])
    sizes = dict.fromkeys([training_size(model), *own_sizes(model), *((side, side) for side in _SIZES)])
    sizes = [size for size in sizes if size != image.size]
    size = next((size for size in sizes if _works(taps, model, image, size)), None)
    if size is None:
        also = ', and its channels_last if it is set' if taps.role.startswith('teacher') else ''
        return f'so it does on those of {", ".join(map(_by, sizes))}: the size is not the cause, see its config{also}'
    value = size[0] if size[0] == size[1] else size
    if alone:
        return f'it takes {_by(size)}: write size={value} in the teacher, which resizes its images'
    if any(net is model for net in image.nets):
        if image.source == 'data_preprocessor':
            return f'it takes {_by(size)}: set the size of its data_preprocessor, which is {image.size}, to {size}'
        return f'set {image.source}{value}, which works'
    text = f'it sees the images of the student, and {_by(size)} works for both: train the student at this size'
    text += (
        f' (its data_preprocessor pads them to {_by(image.size)})'
        if image.source == 'data_preprocessor'
        else (f', and set {image.source}{value}')
    )
    resized = taps.role.startswith('teacher') and host_of(model) != 'mmdet'
    return text + f'; or write size={value} in the teacher, which resizes its images' * resized


def _works(taps: FeatureTaps, model: nn.Module, image: MadeUpImage, size: tuple[int, int]) -> bool:
    fresh = FeatureTaps({name: str(address) for name, address in taps.addresses.items()}, taps.role)
    try:
        fresh.trace(model, partial(image.run, model, Pass(), size))
        for net in image.nets:
            if net is not model:
                image.run(net, Pass(), size)
    except Exception:  # as it may on any image that does not fit
        return False
    return True


def _by(size: tuple[int, int]) -> str:
    return f'{size[0]} x {size[1]}'


def dry_terms(terms: Objective, student: nn.Module, image: MadeUpImage, replayed: Sequence[FeatureTaps]) -> None:
    """Run every term once on zeros of the traced shapes, so that mismatched shapes raise here.

    Terms with a tap that was left open wait for the first batch.

    Args:
        student: the net for which dummy samples are made.
        replayed: the taps that a loss which runs the nets again can read in a plain forward alone.
    """
    # The taps of each teacher, on labelled and on other images.
    taught = {term.key: (term.student.taps, term.teacher.taps) for term in terms.values()}
    images = torch.zeros(1, image.channels, *image.size)
    samples = fabricate_samples(student, 1, image.size)
    batches = {key: _dry_batch(terms.taught(*key), both, images, samples) for key, both in taught.items()}
    batch = batches.pop((None, False), None) or Batch({}, {}, images, samples)
    batch.others = batches
    done: Connected = {}
    for name, term in terms.items():
        both = term.student, term.teacher
        open_taps = any(set(names) - side.taps.traces.keys() for side, names in zip(both, term.reads()))
        if open_taps or any(side.lender not in (None, *done) for side in both):
            continue
        for side in both if term.replays else ():
            unseen = [n for n in side.names if Pass() not in side.taps.traces[n].passes]
            if unseen and any(side.taps is taps for taps in replayed):
                raise ValueError(
                    f'term {name!r}: {term.loss_name} runs the nets again without their losses, and {side.taps.role} '
                    f'tap {unseen[0]!r} fires only with them; tap a layer that runs in a plain forward'
                )
        with eval_mode(term):
            terms.value(name, batch, done)


def _dry_batch(terms: list[Term], both: tuple[FeatureTaps, FeatureTaps], images: Tensor, samples: list) -> Batch:
    """Zeros of the traced shapes, as the terms of one teacher see them."""

    def features(images: Tensor, *_) -> list[dict[str, Feature]]:
        # They depend on the images, for losses that differentiate with respect to them.
        zero, found = 0 * images.sum(), []
        for taps in both:
            zeros = {name: [zero + torch.zeros(shape) for shape in t.shapes] for name, t in taps.traces.items()}
            found.append({n: of if taps.addresses[n].call == '*' else of[0] for n, of in zeros.items()})
        return found

    def reuse(part: str, values: Mapping[str, Feature], names: list[str]) -> dict[str, Feature]:
        return features(sum(x.sum() for x in flat(values.values())))[1]

    def score(term: Term, names: list[str]) -> dict[str, Feature]:
        # The teacher scores as many regions as the student.
        ours, theirs = features(images)
        rows = len(ours[term.student.names[0]])
        return {name: theirs[name].new_zeros(rows, *theirs[name].shape[1:]) for name in names}

    def judge(judge: Judge, memory: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        theirs = [torch.zeros(shape) for shape in judge.shapes]
        return [x + sum(of.sum() for of in memory) for x in theirs], theirs

    # Each region holds an object of the first class.
    labels = {
        term.regions.mask_loss: torch.zeros(term.student.taps.traces[tap].shapes[0][0], dtype=torch.long)
        for term in terms
        if term.regions is not None and (tap := term.student.names[0]) in term.student.taps.traces
    }
    return Batch(
        *features(images), images, samples, replay=features, reuse=reuse, regions=score, judge=judge, noted=labels
    )
