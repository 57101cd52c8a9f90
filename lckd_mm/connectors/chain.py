"""Chain: a config's list of connectors."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .base import Connector
from .layers import MatchSize


class Chain(Connector, nn.ModuleList):
    """Connectors one after the other: a config's list of connectors.

    Raises:
        ValueError: more than one that needs training images, or one behind MatchSize or weights; one with
        ``online=True``.
    Example:
        connector=[dict(type='lckd_mm.ConvBN'), dict(type='lckd_mm.MatchSize')]
    """

    def __init__(self, connectors: Sequence[Connector]):
        super().__init__(connectors)
        self._check()

    def _check(self) -> None:
        connectors = list(self)
        fitted = [connector for connector in connectors if connector.waits_for_data or connector.online]
        if len(fitted) > 1 or any(connector.online for connector in fitted):
            raise ValueError(
                f'a list of connectors takes one that is fitted to training images before the run, and none with '
                f'online=True; got {", ".join(type(connector).__name__ for connector in fitted)}'
            )
        for connector in connectors[: connectors.index(fitted[0])] if fitted else ():
            if isinstance(connector, MatchSize):
                raise ValueError(f'write {type(fitted[0]).__name__} before MatchSize: it is fitted without the student')
            if any(True for _ in connector.parameters()):
                raise ValueError(
                    f'write {type(fitted[0]).__name__} before {type(connector).__name__}: it is fitted before the run, '
                    'and what that one gives changes with its weights'
                )

    @property
    def batches(self) -> int:
        return max((connector.batches for connector in self if connector.waits_for_data), default=0)

    @property
    def waits_for_data(self) -> bool:
        return any(connector.waits_for_data for connector in self)

    def bind(self, norm: nn.Module | None, who: str) -> None:
        """The norm before the tap is that of each connector up to the first with weights."""
        for connector in self:
            connector.bind(norm, who)
            if any(True for _ in connector.parameters()):
                norm = None
        # A MarginReLU knows only here whether it needs training images.
        try:
            self._check()
        except ValueError as error:
            raise ValueError(f'{who}: {error}') from None

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Let the waiting connector take in what those before it make of the feature."""
        for connector in self:
            if connector.waits_for_data:
                return connector.observe(x)
            x = connector(x, x)

    def finish_fitting(self) -> str:
        return next(connector for connector in self if connector.waits_for_data).finish_fitting()

    def forward(self, x: Tensor, like: Tensor | None = None) -> Tensor:
        for connector in self:
            x = connector(x, like)
        return x
