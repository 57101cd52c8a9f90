"""Regions of two-stage detectors: the teacher's RoI head scores the regions that the student sampled in this step."""

import contextlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..contexts import wrapped_forward
from ..taps import FeatureTaps

_TAPS = re.compile(r'roi_head\.(bbox|mask)_head(?:\.(\d+))?\..+')


class RegionHead(NamedTuple):
    """The head for boxes or for masks of a two-stage detector of mmdet; of a cascade, that of one stage."""

    kind: str
    stage: int | None = None

    @classmethod
    def of(cls, term: str, taps: FeatureTaps, names: Iterable[str], model: nn.Module) -> 'RegionHead':
        """The head in which these taps of a net lie.

        Raises:
            ValueError: they lie elsewhere, in several heads, or their head does not read its own regions.
        """
        who, found = f'term {term!r}: regions=True', set()
        for tap in names:
            address = taps.addresses[tap]
            match = _TAPS.fullmatch(address.path)
            if match is None or address.call == '*':
                raise ValueError(
                    f"{who} lets both nets' RoI heads score the same regions, and {taps.role} tap {tap!r} is "
                    f"{str(address)!r}; tap a layer of such a head, such as 'roi_head.bbox_head.fc_cls', or "
                    "'roi_head.bbox_head.2.fc_cls' of a cascade"
                )
            # Only the heads of a cascade have a number behind their name.
            found.add(cls(match[1], None if match[2] is None else int(match[2])))
        if len(found) > 1:
            raise ValueError(f'{who}: the taps of the {taps.role} lie in several heads; write a term for each')
        (head,) = found
        roi_head = model.get_submodule('roi_head')
        run = getattr(roi_head, f'_{head.kind}_forward', None)
        try:
            inspect.signature(run).bind(*head.arguments(None, None))
            model.get_submodule(head.extractor)
        except (TypeError, AttributeError):  # queries beside the regions, or no extractor
            run = None
        if run is None or (head.kind == 'mask' and getattr(roi_head, 'share_roi_extractor', False)):
            raise ValueError(
                f"{who}: the {head.kind}_head of the {taps.role}'s {type(roi_head).__name__} cannot be run on given "
                "regions alone; compare the neck, as in taps='neck'"
            )
        return head

    @property
    def extractor(self) -> str:
        """The path of the module that is called with the pyramid and the regions."""
        return f'roi_head.{self.kind}_roi_extractor' + ('' if self.stage is None else f'.{self.stage}')

    @property
    def mask_loss(self) -> str:
        """The path of the module that is called with masks, their targets, and the classes of the regions' objects."""
        return f'roi_head.{self.kind}_head' + ('' if self.stage is None else f'.{self.stage}') + '.loss_mask'

    def arguments(self, pyramid: Any, regions: Any) -> list[Any]:
        """What the method of the RoI head that runs this head takes."""
        return [*([] if self.stage is None else [self.stage]), pyramid, regions]

    def run(self, model: nn.Module, pyramid: Any, regions: Tensor) -> None:
        """Score these regions, rows (image, x1, y1, x2, y2)."""
        getattr(model.roi_head, f'_{self.kind}_forward')(*self.arguments(pyramid, regions))


@contextlib.contextmanager
def noted_regions(model: nn.Module, heads: Iterable[RegionHead]) -> Iterator[Mapping[str, Tensor]]:
    """What these heads of a net score inside the ``with``: regions by the path of the extractor, and, by the path of
    the loss of masks, the classes of their objects."""
    found: dict[str, Tensor] = {}

    def note(path: str, position: int, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        found[path] = args[position].detach()
        return own(*args, **kwargs)

    with contextlib.ExitStack() as stack:
        for head in heads:
            stack.enter_context(wrapped_forward(model.get_submodule(head.extractor), partial(note, head.extractor, 1)))
            if head.kind == 'mask':
                loss = model.get_submodule(head.mask_loss)
                stack.enter_context(wrapped_forward(loss, partial(note, head.mask_loss, 2)))
        yield found
