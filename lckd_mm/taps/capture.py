"""The hooks that read tensors during one forward pass."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..contexts import wrapped_forward
from ..errors import tool_command
from ..hosts import row_choosers
from .address import Address
from .axes import Layer, channel_axis
from .modules import is_activation, is_norm, not_inplace, watch_input, watch_output

LIST_ALL = f'list all: {tool_command("analysis/list_taps")} CONFIG'


class TapError(ValueError):
    """A tap cannot be read as its address says."""


class Finished(BaseException):
    """All taps have fired: ends the forward early. Not an Exception, so that no host's handler swallows it."""


class Capture:
    """Collects the tensors of one tap during one recording, with their version counters at that time."""

    def __init__(self, name: str, address: Address, role: str, keep_all: bool = False):
        self.name, self.address, self.role, self.keep_all = name, address, role, keep_all
        self.calls = 0
        self.note: Callable[[], Any] = lambda: None
        self._kept: list[tuple[int, Tensor, int, Any]] = []  # (call, tensor, version, note)

    def __call__(self, value: Any) -> None:
        call, wanted = self.calls, self.address.call
        self.calls += 1
        if not self.keep_all and wanted != '*':
            if call != wanted and (call > 0 if wanted is None else wanted >= 0):
                return  # another call than the wanted one; if the address names none, read() refuses a second call
            if wanted is not None and wanted < 0:
                # Only the last calls can be wanted: drop earlier ones to free their memory.
                del self._kept[: max(0, len(self._kept) + 1 + wanted)]
        tensor = self._select(value)
        self._kept.append((call, tensor, tensor._version, self.note()))

    def noted_call(self) -> int:
        """The number of the wanted call, of the last one with ``#*``; needs ``keep_all``, as the next."""
        return self._kept[wanted if isinstance(wanted := self.address.call, int) else -1][0]

    def noted(self) -> Any:
        """The value of :attr:`note` at this call."""
        return self._kept[self.noted_call()][3]

    def last(self) -> Tensor:
        """The tensor of the last call."""
        return self._kept[-1][1]

    def _select(self, value: Any) -> Tensor:
        place = self.address.path
        for depth, item in enumerate(self.address.items):
            what = f'{place} gives' if depth else 'gives'
            if not isinstance(value, (tuple, list)):
                raise self._error(f'{what} a {type(value).__name__}, not a tuple; write it without [{item}]')
            if not -len(value) <= item < len(value):
                raise self._error(f'{what} a tuple of {len(value)}, which has no [{item}]')
            value, place = value[item], f'{place}[{item}]'
        if isinstance(value, Tensor):
            return value
        if isinstance(value, (tuple, list)):
            raise self._error(f'gives a tuple of {len(value)}; pick one with [k], as in {place}[0]')
        raise self._error(f'gives a {type(value).__name__}, not a tensor')

    def read(self, require_grad: bool) -> Tensor | list[Tensor]:
        wanted = self.address.call
        if self.calls == 0:
            raise self._error('never fired: the forward does not call this module; tap one that it calls')
        if wanted is None and self.calls > 1:
            raise self._error(
                f'ran {self.calls} times; say which call with #k, as in {self.address}#-1 (the last), or all as a '
                'list with #*'
            )
        if isinstance(wanted, int) and not -self.calls <= wanted < self.calls:
            raise self._error(f'ran {self.calls} times, so there is no call #{wanted}')
        picked = self._kept
        if wanted != '*':
            picked = [kept for kept in self._kept if kept[0] == (wanted or 0) % self.calls]
        for _, tensor, version, _ in picked:
            if tensor._version != version:
                raise self._error(
                    'was overwritten in place after it was read (by an in-place activation or `+=`); tap the input '
                    "of the next module that reads it, such as 'backbone.layer2.1.relu@in#-1', or a whole stage's "
                    "'backbone.layer2@preact'"
                )
            if require_grad and not tensor.requires_grad:
                raise self._error(
                    'carries no gradient, so a loss on it would train nothing: the layers before it are frozen, '
                    'detached, or inside reentrant activation checkpointing; tap elsewhere, unfreeze them, or '
                    'checkpoint with use_reentrant=False, as the hook lckd_mm.ActivationCheckpointHook does'
                )
        tensors = [tensor for _, tensor, *_ in picked]
        return tensors if wanted == '*' else tensors[0]

    def _error(self, what: str) -> TapError:
        return TapError(f'{self.role} tap {self.name!r}: {str(self.address)!r} {what}; {LIST_ALL}')


@contextlib.contextmanager
def attached(
    model: nn.Module, captures: Iterable[Capture], countdown: dict[str, int] | None = None, until: str | None = None
) -> Iterator[None]:
    """Feed each capture inside the ``with``.

    Args:
        countdown: tap name to the number of calls to wait for; Finished is raised after the last. None: never.
        until: the path of a module whose forward has to end, too; also if it is called directly.
    """
    waiting = None if countdown is None else {n for n, calls in countdown.items() if calls > 0}
    ended = until is None

    def feed(capture: Capture, value: Any) -> None:
        capture(value)
        if waiting is not None and capture.calls >= countdown[capture.name]:
            waiting.discard(capture.name)
            if ended and not waiting:
                raise Finished

    def run(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal ended
        result, ended = forward(*args, **kwargs), True
        if waiting is not None and not waiting:
            raise Finished
        return result

    with contextlib.ExitStack() as stack:
        if until is not None:
            stack.enter_context(wrapped_forward(model.get_submodule(until), run))
        for capture in captures:
            module = model.get_submodule(capture.address.path)
            if capture.address.port == 'in':
                stack.enter_context(not_inplace([module]))
                stack.enter_context(watch_input(module, partial(feed, capture)))
            else:
                stack.enter_context(watch_output(module, partial(feed, capture)))
        yield


class Origin(NamedTuple):
    """What computed a tap's tensor: the norm (see :class:`~lckd_mm.taps.Trace`), and the layers that ran before."""

    norm: str | None
    layers: list[Layer]
    #: What the tensor's rows are, if the net itself chose them; None if they follow from the image alone.
    rows: str | None


@contextlib.contextmanager
def watched_layers(model: nn.Module, captures: Iterable[Capture]) -> Iterator[None]:
    """Let each capture note the :class:`Origin` of its tensor."""
    norm: str | None = None
    layers: list[Layer] = []
    calls: Counter[str] = Counter()
    started: set[str] = set()
    choosers = row_choosers(model)

    def ran(path: str, module: nn.Module, output: Any) -> None:
        nonlocal norm
        started.update(chooser.path for chooser in choosers if inside(path, chooser.path))
        axis = channel_axis(module, output)
        if axis is not None:
            layers.append(Layer(path, calls[path], tuple(output.shape), axis))
            calls[path] += 1
        # Ignore a block's projection, a parallel branch that some hosts run after the block's last layer.
        if {'downsample', 'shortcut'} & set(path.split('.')):
            return
        if is_norm(module):
            norm = path
        elif is_activation(module) or isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            norm = None

    def note(path: str, itself: str | None) -> Origin:
        rows = (c.rows for c in choosers if inside(path, c.path) or (inside(path, c.reach) and c.path in started))
        return Origin(itself or norm, layers.copy(), next(rows, None))

    with contextlib.ExitStack() as stack:
        for path, module in model.named_modules():
            stack.enter_context(watch_output(module, partial(ran, path, module)))
        for capture in captures:
            path = capture.address.path
            itself = path if capture.address.port == 'out' and is_norm(model.get_submodule(path)) else None
            capture.note = partial(note, path, itself)
        yield


def inside(path: str, folder: str) -> bool:
    """Whether a module lies in another one, or is it; '' is the model."""
    return not folder or f'{path}.'.startswith(f'{folder}.')
