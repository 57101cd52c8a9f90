"""Dry runs on dummy images while a model is built, to learn what taps give and check that every term accepts it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import arguments
from ..contexts import eval_mode
from ..errors import one_line
from ..hosts import fabricate_samples, run_once, training_size
from ..taps import LIST_ALL, FeatureTaps
from ..taps.presets import preset_taps
from .objective import Objective
from .side import Connected, Feature
from .term import Batch, Term

#: Tap name to address, a preset's name, or a list of these.
Taps = dict[str, str] | str | Sequence[dict[str, str] | str] | None


def merge_taps(role: str, model: nn.Module, both: Any, own: Any) -> FeatureTaps:
    """The taps of one net: those given for both, overridden by its own, with presets expanded."""
    addresses: dict[str, str] = {}
    for key, source in (('taps', both), (f'{role}_taps', own)):
        for taps in source if isinstance(source, (list, tuple)) else [source]:
            if isinstance(taps, str):
                taps = preset_taps(model, taps)
            elif taps is not None and not isinstance(taps, Mapping):
                raise TypeError(
                    f'{key}: expected a dict of name to address, a preset, or a list of these, got '
                    f'{type(taps).__name__} {taps!r}'
                )
            addresses.update(taps or {})
    return FeatureTaps(addresses, role)


def image_size(who: str, size: Any, student: nn.Module) -> tuple[int, int]:
    """Height and width of the dummy image, from one integer or two; None stands for the student's training size."""
    if size is None:
        return training_size(student)
    sides = arguments.integers(who, 'dry_run_size', [size, size] if isinstance(size, int) else size)
    if len(sides) != 2:
        raise ValueError(f'{who}: dry_run_size must be one number, or height and width, got {size!r}')
    return tuple(sides)


def trace_taps(taps: FeatureTaps, model: nn.Module, size: tuple[int, int], with_loss: bool = False) -> set[str]:
    """Run a net once on a dummy image, to resolve its taps and learn channels and calls.

    Args:
        with_loss: run again with the loss for taps that did not fire, such as those in auxiliary heads.
    Returns:
        The names of the taps that fire only with the loss.
    Raises:
        ValueError: the run fails, or a tap never fires.
    """
    silent = taps.trace(model, lambda: _run(model, size, 'tensor', taps.role))
    only_with_loss = set(silent)
    if silent and with_loss:
        silent = taps.trace(model, lambda: _run(model, size, 'loss', taps.role), silent)
    if silent:
        tap = min(silent)
        raise ValueError(
            f'{taps.role} tap {tap!r}: {str(taps.addresses[tap])!r} never fires: no forward calls this module '
            '(hosts call a head by its methods: tap a layer inside, such as head.fc or decode_head.conv_seg); '
            + LIST_ALL
        )
    return only_with_loss


def rehearse(terms: Objective, student: nn.Module, size: tuple[int, int], only_with_loss: set[str]) -> None:
    """Run every term once on zeros of the traced shapes, so that mismatched shapes raise here.

    Args:
        student: the net for which dummy samples are made.
        size: height and width of the dummy image.
        only_with_loss: the student's taps that fire only with the loss.
    """
    first: Term = next(iter(terms.values()))

    def features(images: Tensor, *_) -> list[dict[str, Feature]]:
        # They depend on the images, for losses that differentiate with respect to them.
        zero, sides = 0 * images.sum(), []
        for taps in (first.student.taps, first.teacher.taps):
            zeros = {name: [zero + torch.zeros(shape) for shape in t.shapes] for name, t in taps.traces.items()}
            sides.append({n: of if taps.addresses[n].call == '*' else of[0] for n, of in zeros.items()})
        return sides

    images = torch.zeros(1, 3, *size)
    batch = Batch(*features(images), images, fabricate_samples(student, 1, size), replay=features)
    done: Connected = {}
    for name, term in terms.items():
        unseen = sorted(only_with_loss.intersection(term.student.names))
        if term.replays and unseen:
            raise ValueError(
                f'term {name!r}: {term.loss_name} runs the nets again without their losses, and student '
                f'tap {unseen[0]!r} fires only with them; tap a layer that runs in a plain forward'
            )
        try:
            with eval_mode(term):
                value = term(batch, done)
        except Exception as error:  # a loss or connector may raise anything on features that do not fit
            shapes = [
                f'{side.role} ' + ', '.join(f'{n} {tuple(side.taps.traces[n].shapes[0])}' for n in side.names)
                for side in (term.student, term.teacher)
            ]
            raise ValueError(
                f'term {name!r}: {term.loss_name} does not take these features ({"; ".join(shapes)}): {one_line(error)}'
            ) from error
        if not isinstance(value, Tensor) or value.dim() != 0:
            given = tuple(value.shape) if isinstance(value, Tensor) else f'a {type(value).__name__}'
            raise ValueError(f'term {name!r}: {term.loss_name} must return a scalar tensor, not {given}')


def _run(model: nn.Module, size: tuple[int, int], mode: str, who: str) -> None:
    try:
        run_once(model, size, mode)
    except Exception as error:  # a host may raise anything on an image that does not fit
        if 'tap ' in str(error):
            raise
        raise ValueError(
            f'{who}: its dry run on one image of {size[0]} x {size[1]} (mode={mode!r}) failed: {one_line(error)}; set '
            'dry_run_size to a size that it takes'
        ) from error
