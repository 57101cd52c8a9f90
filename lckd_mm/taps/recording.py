"""FeatureTaps: reads intermediate tensors by address during one forward pass, and checks them."""

import contextlib
import difflib
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..contexts import saved_buffers
from ..hosts import comparable_parts
from .address import Address
from .axes import Layer, arranged, arrangement, find_channels, marked
from .capture import LIST_ALL, Capture, Finished, TapError, attached, watched_layers
from .modules import compiled_around, not_inplace
from .places import put
from .preact import resolve_preact


class Pass(NamedTuple):
    """A way of running a host's model: its ``mode``, and whether with the branches of training."""

    mode: str = 'tensor'
    training: bool = False


#: In the order in which they are tried for a tap.
PASSES = Pass('tensor'), Pass('predict'), Pass('loss'), Pass('loss', training=True)


@dataclass
class Trace:
    """What one run shows of a tap: the number of calls of its module, and the shape of each tensor that it gives."""

    calls: int
    shapes: list[tuple[int, ...]]
    #: Path of the normalisation layer that produces the tensor, possibly before an addition; None if another layer with
    #: weights, or an activation, runs in between.
    norm: str | None = None
    #: The permutation from the host's axes to the layout that the tap gives (:mod:`lckd_mm.taps.axes`); None: as it is.
    order: tuple[int, ...] | None = None
    #: Whether it is known which axis holds the channels.
    known: bool = True
    #: If the net itself chooses the rows, such as its own regions: what they are, and what can be compared instead.
    rows: str | None = None
    #: Of the predictions (L, B, Q, C) of a decoder's L layers, which keep their order of axes: Q, without the denoising
    #: queries that training puts before them.
    queries: int | None = None
    #: The passes in which the tap fires so; the first is preferred.
    passes: tuple[Pass, ...] = (Pass(),)

    def agrees(self, other: 'Trace') -> bool:
        """Whether both runs show the same calls and shapes."""
        return (self.calls, self.shapes) == (other.calls, other.shapes)


class FeatureTaps:
    """Named taps of one model.

    Holds only names and addresses, never a module or a hook: hosts replace modules (SyncBN conversion) and deep-copy
    models (EMA) at will. Hooks exist only inside :meth:`record`, :meth:`trace` and :meth:`substitute`.

    Args:
        addresses: tap name to address.
        role: the net's role in error messages, such as 'student'.
    Example:
        taps = FeatureTaps({'stage4': 'backbone.layer4', 'input': 'backbone.layer4.0.conv1@in'})
        with taps.record(model) as features:
            model(images)
        features['stage4'].shape
    """

    def __init__(self, addresses: dict[str, str], role: str = 'student'):
        self.role = role
        for name in addresses:
            if not isinstance(name, str) or not name:
                raise ValueError(f'{role} tap {name!r}: its name must be a non-empty string, such as stage1')
        self.addresses = {name: self._parsed(name, text) for name, text in addresses.items()}
        # @preact is resolved by trace() to the input of one activation.
        self.resolved = {name: a for name, a in self.addresses.items() if a.port != 'preact'}
        self.traces: dict[str, Trace] = {}

    def _parsed(self, name: str, text: str) -> Address:
        try:
            return Address.parse(text)
        except ValueError as error:
            raise ValueError(f'{self.role} tap {name!r}: {error}') from None

    def check_paths(self, model: nn.Module) -> None:
        """Check that every address can be read.

        Raises:
            KeyError: the model lacks the module; the message names the closest. ValueError: the module lies inside a
            compiled module (torch.compile).
        """
        # With duplicates: a shared module can be tapped by any of its names.
        known = dict(model.named_modules(remove_duplicate=False))
        for name, address in self.addresses.items():
            path = self.resolved.get(name, address).path
            compiled = compiled_around(model, path)
            if compiled is not None:
                raise ValueError(
                    f'{self.role} tap {name!r}: {path!r} lies inside {compiled or type(model).__name__!r}, '
                    'which torch.compile has compiled, and hooks do not fire inside compiled code; compile only '
                    'modules without taps inside'
                )
            if address.path not in known:
                names = [n for n in known if n]
                close = difflib.get_close_matches(address.path, names, n=3, cutoff=0.5)
                raise KeyError(
                    f'{self.role} tap {name!r}: no module {address.path!r} in {type(model).__name__}; closest: '
                    f'{", ".join(map(repr, close or names[:3]))}; {LIST_ALL}'
                    f'{" --teacher" * (self.role == "teacher")}'
                )

    def trace(self, model: nn.Module, run: Callable[[], Any], names: Iterable[str] | None = None) -> set[str]:
        """Run the model once; resolve ``@preact`` and note shapes and calls in :attr:`traces`.

        Args:
            run: runs the model's forward, without gradient. It may fail after all these taps have fired; a recorded
                forward can stop there, too.
            names: the taps to trace; by default those not traced yet.
        Returns:
            The names of the taps that did not fire.
        Raises:
            KeyError: a path does not exist. ValueError: a tap cannot be read (see :meth:`record`), or has ``@preact``
            on a module that does not end in an activation. The error of ``run``, if it fails before all these taps have
            fired; those that have are traced.
        """
        self.check_paths(model)
        names = [n for n in self.addresses if n not in self.traces] if names is None else list(names)
        unresolved = {n: self.addresses[n] for n in names if n not in self.resolved}
        self.resolved |= resolve_preact(model, run, unresolved, self.role)
        captures = {n: Capture(n, self.resolved[n], self.role, keep_all=True) for n in names if n in self.resolved}
        failure = None
        with watched_layers(model, captures.values()), attached(model, captures.values()):
            try:
                run()
            except TapError:
                raise
            except Exception as error:  # a host may raise anything
                failure = error
        traced = set()
        for name, capture in captures.items():
            if not capture.calls:
                continue
            try:
                picked = capture.read(require_grad=False)
            except TapError:
                if failure is None:
                    raise
                continue  # its call may have been to come
            shapes = [tuple(x.shape) for x in (picked if isinstance(picked, list) else [picked])]
            self.traces[name] = self._traced(name, capture, shapes, model, run)
            traced.add(name)
        silent = set(names) - traced
        if failure is not None and silent:
            raise failure
        return silent

    def passes(self, names: Iterable[str]) -> dict[Pass, list[str]]:
        """The passes that read these taps, with the taps that each reads; one if it reads all."""
        names = list(names)
        of = {name: self.traces[name].passes if name in self.traces else (Pass(),) for name in names}
        for one in of[names[0]] if names else ():
            if all(one in several for several in of.values()):
                return {one: names}
        found: dict[Pass, list[str]] = {}
        for name in names:
            found.setdefault(of[name][0], []).append(name)
        return found

    def _traced(
        self, name: str, capture: Capture, shapes: list[tuple[int, ...]], model: nn.Module, run: Callable[[], Any]
    ) -> Trace:
        """The trace of a tap with these shapes, in the host's order; runs again if sizes do not tell the axes."""
        origin = capture.noted()

        def marks(layer: Layer) -> Tensor | None:
            probe, restore = Capture(name, self.resolved[name], self.role, keep_all=True), saved_buffers(model)
            with (
                contextlib.suppress(Finished, Exception),  # a layer in between may refuse nan
                marked(model, layer),
                attached(model, [probe], {name: capture.noted_call() + 1}),
            ):
                run()
            restore()
            return probe.last() if probe.calls else None

        queries = shapes[0][2] if len(shapes[0]) == 4 and (origin.rows or '').startswith('query') else None
        channels = None if queries else find_channels(shapes, origin.layers, marks)
        order = None if channels is None else arrangement(shapes, channels)
        if order is not None:
            shapes = [tuple(shape[axis] for axis in order) for shape in shapes]
        rows = origin.rows and (
            f'a row for each {origin.rows}, so that row i of one net has nothing to do with row i of another; compare '
            + comparable_parts(model)
        )
        return Trace(capture.calls, shapes, origin.norm, order, channels is not None, rows, queries)

    @contextlib.contextmanager
    def record(
        self,
        model: nn.Module,
        names: Iterable[str] | None = None,
        require_grad: bool | Collection[str] = False,
        stop: bool = False,
        until: str | None = None,
    ) -> Iterator[dict[str, Tensor | list[Tensor]]]:
        """Read the taps during the forwards inside the ``with``; the dict is filled on exit.

        A traced tap gives a map (B, C, H, W), tokens (B, N, C) or a vector (B, C), whatever the host's order of axes.

        Args:
            names: the taps to read; by default all.
            require_grad: True: raise if any tapped tensor has no gradient; a list of names: only for those taps.
            stop: end the forward as soon as every tap has fired as often as in the trace. This also leaves the ``with``
                block: code after the forward call in it does not run.
            until: with ``stop``, the path of a module whose forward has to end, too.
        Raises:
            ValueError: a tap did not fire; its module ran several times and the address does not say which call; its
            value is not a tensor, was later overwritten in place, or lacks a required gradient.
        """
        names = list(self.addresses) if names is None else list(names)
        untraced = [n for n in names if n not in self.resolved]
        if untraced:
            raise ValueError(f'{self.role} tap {untraced[0]!r}: @preact must be resolved by trace() before it is read')
        captures = [Capture(n, self.resolved[n], self.role) for n in names]
        countdown = None
        if stop and captures and all(n in self.traces for n in names):
            countdown = {
                n: a + 1 if isinstance(a := self.resolved[n].call, int) and a >= 0 else self.traces[n].calls
                for n in names
            }
        features: dict[str, Tensor | list[Tensor]] = {}
        with contextlib.suppress(Finished), attached(model, captures, countdown, until):
            yield features
        for capture in captures:
            must = require_grad if isinstance(require_grad, bool) else capture.name in require_grad
            order = trace.order if (trace := self.traces.get(capture.name)) else None
            x = capture.read(must)
            features[capture.name] = [arranged(y, order) for y in x] if isinstance(x, list) else arranged(x, order)

    @contextlib.contextmanager
    def substitute(self, model: nn.Module, name: str, value: Tensor | list[Tensor]) -> Iterator[None]:
        """Replace a tap's tensor by ``value``, in the layout of :meth:`record`: the forwards inside continue with it.

        Only the tapped module's output (or input, with ``@in``) is replaced; modules that get the same tensor another
        way still read the original. The forward may overwrite ``value`` in place.

        Args:
            value: one tensor; a list of one per call for a tap that reads all calls of its module (``#*``).
        Raises:
            ValueError: the tap was not traced, or ``value`` is not one tensor per call that the tap reads.
        """
        if name not in self.resolved or name not in self.traces:
            raise ValueError(f'{self.role} tap {name!r}: it must be traced before something is put in its place')
        address, trace = self.resolved[name], self.traces[name]
        # Without #k, the module runs once.
        wanted = range(trace.calls) if address.call == '*' else [(address.call or 0) % trace.calls]
        values = [value] if isinstance(value, Tensor) else value
        if len(values) != len(wanted) or isinstance(value, Tensor) != (address.call != '*'):
            raise ValueError(
                f'{self.role} tap {name!r}: {str(address)!r} reads {len(wanted)} calls, and {len(values)} tensors are '
                'to be put in their place; give a list for #*, else one tensor'
            )
        puts = {call: arranged(x, trace.order, inverse=True) for call, x in zip(wanted, values)}
        module, calls = model.get_submodule(address.path), 0

        def replaced(given: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls - 1 not in puts:
                return given
            return put(given, address.items, puts[calls - 1])

        def replaced_input(_, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            if args:
                return (replaced(args[0]), *args[1:]), kwargs
            key = next(iter(kwargs))
            return args, {**kwargs, key: replaced(kwargs[key])}

        if address.port == 'in':
            with not_inplace([module]), module.register_forward_pre_hook(replaced_input, with_kwargs=True):
                yield
        else:
            with module.register_forward_hook(lambda _, args, output: replaced(output)):
                yield
