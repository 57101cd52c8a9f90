"""Connector: the base class of connectors."""

from typing import Any

from torch import Tensor, nn

from ..functional.shapes import check_kind


class Connector(nn.Module):
    """Base class of connectors, modules with ``forward(x, like)``.

    ``x`` is a feature of the connector's own net, ``like`` the other net's, for its shape or its statistics: maps
    (B, C, H, W), tokens (B, N, C) or vectors (B, C); a connector that needs certain kinds names them in ``takes``.
    There is one instance per tap. A term fills in ``in_channels`` and ``out_channels`` from the dry run if the
    constructor has them.

    A connector of the teacher's feature (``of_teacher``) may read the BatchNorm before the tap (:meth:`bind`), or need
    training images: while ``waits_for_data``, :class:`~lckd_mm.hooks.DistillationHook` passes it the features of
    ``batches`` batches before the first iteration (:meth:`observe`, then :meth:`finish_fitting`). With ``online`` it is
    trained by the loss of its term.
    """

    #: The kinds that it takes, of 'map', 'tokens' and 'vector'; None if it needs not know the axes.
    takes: tuple[str, ...] | None = None
    #: What to take instead for other kinds.
    otherwise = ''
    of_teacher = False
    waits_for_data = False
    online = False
    batches = 0

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.takes:
            check_kind(type(self).__name__, x, self.takes, self.otherwise)
        return super().__call__(x, *args, **kwargs)

    def bind(self, norm: nn.Module | None, who: str) -> None:
        """Read the norm that produces the tapped feature; called after building, and after the teacher is loaded."""

    def observe(self, x: Tensor) -> None:
        """Take in one batch's feature."""

    def finish_fitting(self) -> str:
        """Finish with what was observed; returns a message for the log."""
        return ''


class Layers(Connector, nn.Sequential):
    """A chain of layers that does not look at the other net's feature; on maps, unless it says otherwise."""

    takes = ('map',)

    def forward(self, x: Tensor, like: Tensor | None = None) -> Tensor:
        return super().forward(x)
