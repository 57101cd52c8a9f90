"""FeatureTaps: addresses of intermediate tensors, read during one forward, and checked.

An address is ``path[item]@port#call``: the module's path in the model, then, each optional,

* ``[k]``: which element, of an output (or input) that is a tuple or list;
* ``@in``: the module's first input instead of its output; ``@preact``: the input of the activation that ends the
  module (a residual stage's output before its last ReLU, the feature that OFD and LONDON match);
* ``#k``: which call, of a module that runs several times in a forward (``#-1`` the last); ``#*`` all, as a list.
"""

import contextlib
import difflib
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_GRAMMAR = re.compile(
    r'(?P<path>\w+(?:\.\w+)*)(?:\[(?P<item>-?\d+)\])?(?:@(?P<port>in|preact))?(?:#(?P<call>-?\d+|\*))?'
)
LIST_ALL = 'list all: python tools/analysis/list_taps.py CONFIG'


@dataclass(frozen=True)
class Address:
    """One parsed address; :meth:`parse` raises ValueError on a malformed one."""

    path: str
    item: int | None = None
    port: str = 'out'
    call: int | str | None = None

    @classmethod
    def parse(cls, text: str) -> 'Address':
        match = _GRAMMAR.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise ValueError(
                f'tap address {text!r} is malformed: expected path[item]@in#call, such as '
                "'backbone.layer2@preact', 'backbone.layer2.1.relu@in#-1', 'neck[0]' or 'bbox_head.retina_cls#*'"
            )
        item, call = match['item'], match['call']
        if match['port'] == 'preact' and (item is not None or call is not None):
            raise ValueError(f'tap address {text!r} is malformed: @preact takes neither [item] nor #call')
        return cls(
            path=match['path'],
            item=None if item is None else int(item),
            port=match['port'] or 'out',
            call=call if call in (None, '*') else int(call),
        )

    def __str__(self) -> str:
        item = '' if self.item is None else f'[{self.item}]'
        port = '' if self.port == 'out' else f'@{self.port}'
        return f'{self.path}{item}{port}' + ('' if self.call is None else f'#{self.call}')


@dataclass
class Trace:
    """What one run showed of a tap: how often its module ran, and the shape of each tensor that the address picks."""

    calls: int
    shapes: list[tuple[int, ...]]
    #: Path of the normalisation layer whose output this is, perhaps after an addition; None where another layer with
    #: weights or an activation ran since.
    norm: str | None = None


class _Finished(BaseException):
    """Every tap has fired: leaves the forward early. Not an Exception, so that no host's handler swallows it."""


class FeatureTaps:
    """Named taps of one model.

    Holds names and addresses only, never a module or a hook: hosts replace modules (SyncBN conversion) and deep-copy
    models (EMA) at will. Hooks live inside :meth:`record` and :meth:`trace` and nowhere else.

    Args:
        addresses: tap name to address.
        role: 'student' or 'teacher', for messages.
    """

    def __init__(self, addresses: dict[str, str], role: str = 'student'):
        self.role = role
        for name in addresses:
            if not isinstance(name, str) or not name:
                raise ValueError(f'{role} tap {name!r}: a tap is named by a text, such as stage1')
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
        """Raise where an address cannot be read.

        Raises:
            KeyError: it names a module that the model lacks; the closest are named. ValueError: it lies inside a module
            that torch.compile has compiled.
        """
        for name, address in self.addresses.items():
            path = self.resolved.get(name, address).path
            compiled = _compiled_around(model, path)
            if compiled is not None:
                raise ValueError(
                    f'{self.role} tap {name!r}: {path!r} lies inside {compiled or type(model).__name__!r}, '
                    'which torch.compile has compiled, and hooks do not fire inside compiled code; compile only '
                    'modules without taps inside'
                )
        # With duplicates: a shared module can be tapped by any of its names.
        known = dict(model.named_modules(remove_duplicate=False))
        for name, address in self.addresses.items():
            if address.path not in known:
                names = [n for n in known if n]
                close = difflib.get_close_matches(address.path, names, n=3, cutoff=0.5)
                raise KeyError(
                    f'{self.role} tap {name!r}: no module {address.path!r} in {type(model).__name__}; closest: '
                    f'{", ".join(map(repr, close or names[:3]))}; {LIST_ALL}'
                )

    def trace(self, model: nn.Module, run: Callable[[], Any], names: Iterable[str] | None = None) -> set[str]:
        """Run the model once; resolve ``@preact`` and note shapes and calls in :attr:`traces`.

        Args:
            run: runs the model's forward, without gradient.
            names: the taps to trace, by default those not traced yet.
        Returns:
            The names of the taps that did not fire.
        Raises:
            KeyError: a path that does not exist. ValueError: a tap that breaks a rule (see :meth:`record`), or
            ``@preact`` on a module that does not end in an activation.
        """
        self.check_paths(model)
        names = [n for n in self.addresses if n not in self.traces] if names is None else list(names)
        self._resolve_preact(model, run, [n for n in names if self.addresses[n].port == 'preact'])
        silent = set()
        captures = {n: _Capture(n, self.resolved[n], self.role, keep_all=True) for n in names if n in self.resolved}
        with _watched_norms(model, captures.values()), _attached(model, captures.values()):
            run()
        for name in names:
            if name not in captures or captures[name].calls == 0:
                silent.add(name)
                continue
            picked = captures[name].read(require_grad=False)
            self.traces[name] = Trace(
                calls=captures[name].calls,
                shapes=[tuple(x.shape) for x in (picked if isinstance(picked, list) else [picked])],
                norm=captures[name].noted(),
            )
        return silent

    @contextlib.contextmanager
    def record(
        self,
        model: nn.Module,
        names: Iterable[str] | None = None,
        require_grad: bool | Collection[str] = False,
        stop: bool = False,
    ) -> Iterator[dict[str, Tensor | list[Tensor]]]:
        """Read the taps of the forwards inside the ``with``; the dict is filled when it is left.

        Args:
            names: the taps to read, by default all.
            require_grad: raise where a tapped tensor carries no gradient; or the names of the taps of which to.
            stop: leave the forward as soon as every tap has fired as often as in the trace. The forward is then
                abandoned and the ``with`` left; nothing after the forward call inside the ``with`` runs.
        Raises:
            ValueError: on leaving, where a tap did not fire; where its module ran several times and the address does
            not say which call; where it is no tensor; where it was overwritten in place since; where it carries no
            gradient though it must.
        """
        names = list(self.addresses) if names is None else list(names)
        untraced = [n for n in names if n not in self.resolved]
        if untraced:
            raise ValueError(f'{self.role} tap {untraced[0]!r}: @preact must be resolved by trace() before it is read')
        captures = [_Capture(n, self.resolved[n], self.role) for n in names]
        countdown = None
        if stop and captures and all(n in self.traces for n in names):
            countdown = {
                n: a + 1 if isinstance(a := self.resolved[n].call, int) and a >= 0 else self.traces[n].calls
                for n in names
            }
        features: dict[str, Tensor | list[Tensor]] = {}
        with contextlib.suppress(_Finished), _attached(model, captures, countdown):
            yield features
        for capture in captures:
            must = require_grad if isinstance(require_grad, bool) else capture.name in require_grad
            features[capture.name] = capture.read(must)

    @contextlib.contextmanager
    def substitute(self, model: nn.Module, name: str, value: Tensor) -> Iterator[None]:
        """Put ``value`` in a tap's place: what the forwards inside the ``with`` compute from there on follows from it.

        Only the tapped module's output (or input, with ``@in``) is replaced: other modules that read the same tensor,
        around it, still read what was there. The forward may overwrite ``value`` in place.

        Raises:
            ValueError: the tap was not traced, or reads all calls of its module (``#*``).
        """
        if name not in self.resolved or name not in self.traces:
            raise ValueError(f'{self.role} tap {name!r}: it must be traced before something is put in its place')
        address = self.resolved[name]
        if address.call == '*':
            raise ValueError(f'{self.role} tap {name!r}: {str(address)!r} reads all calls, so it is no single place')
        # A tap without #k has one call.
        wanted, calls = (address.call or 0) % self.traces[name].calls, 0
        module = model.get_submodule(address.path)

        def replaced(given: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls - 1 != wanted:
                return given
            if address.item is None:
                return value
            items = list(given)
            items[address.item] = value
            return type(given)(items) if type(given) in (list, tuple) else type(given)(*items)

        def output_hook(module, args, output):
            return replaced(output)

        def input_hook(module, args, kwargs):
            if args:
                return (replaced(args[0]), *args[1:]), kwargs
            key = next(iter(kwargs))
            return args, {**kwargs, key: replaced(kwargs[key])}

        if address.port == 'in':
            handle = module.register_forward_pre_hook(input_hook, with_kwargs=True)
        else:
            handle = module.register_forward_hook(output_hook)
        try:
            with not_inplace([module] if address.port == 'in' else []):
                yield
        finally:
            handle.remove()

    def _resolve_preact(self, model: nn.Module, run: Callable[[], Any], names: list[str]) -> None:
        stages: dict[str, list[str]] = {}  # the path of a stage, and the taps that name it
        for name in names:
            if name not in self.resolved:
                stages.setdefault(self.addresses[name].path, []).append(name)
        if not stages:
            return
        modules = dict(model.named_modules())
        paths = {m: p for p, m in modules.items()}
        leaves = [m for p, m in modules.items() if p and not any(m.children())]
        activations = [m for m in leaves if is_activation(m)]
        order: list[tuple[nn.Module, int, Any]] = []  # (leaf, its call number, output), in order of execution
        calls: dict[nn.Module, int] = dict.fromkeys(leaves, 0)
        ends: dict[str, tuple[int, Any]] = {}

        def leaf_hook(module, args, output):
            order.append((module, calls[module], output))
            calls[module] += 1

        def stage_hook(path):
            def hook(module, args, output):
                ends[path] = (len(order), output)

            return hook

        handles = [m.register_forward_hook(leaf_hook) for m in leaves]
        handles += [modules[path].register_forward_hook(stage_hook(path)) for path in stages]
        try:
            with not_inplace(activations):
                run()
        finally:
            for handle in handles:
                handle.remove()
        for path, taps in stages.items():
            if path not in ends:
                continue  # it did not fire: trace() reports it
            position, output = ends[path]
            last = next((e for e in reversed(order[:position]) if e[2] is output), None)
            if last is None or not is_activation(last[0]):
                inside = set(modules[path].modules())
                norms = [paths[m] for m, _, _ in order[:position] if m in inside and is_norm(m)]
                following = next((paths[m] for m, _, _ in order[position:] if is_norm(m)), None)
                options = [f'{path!r} (its output)']
                if norms:
                    options.append(f'{norms[-1]!r} (its last norm, as for linear bottlenecks)')
                if following:
                    options.append(f'{following!r} (the next norm, as for pre-activation nets)')
                raise ValueError(
                    f'{self.role} tap {taps[0]!r}: {path!r} does not end in an activation, so {path}@preact has no '
                    f'meaning; write one of {", ".join(options)}'
                )
            module, call, _ = last
            which = None if calls[module] == 1 else -1 if call == calls[module] - 1 else call
            for name in taps:
                self.resolved[name] = Address(paths[module], port='in', call=which)


class _Capture:
    """The tensors of one tap during one recording, with their version counters at capture."""

    def __init__(self, name: str, address: Address, role: str, keep_all: bool = False):
        self.name, self.address, self.role, self.keep_all = name, address, role, keep_all
        self.calls = 0
        self.note: Callable[[], Any] = lambda: None
        self._kept: list[tuple[int, Tensor, int]] = []  # (call, tensor, version)
        self._notes: list[Any] = []

    def __call__(self, value: Any) -> None:
        call, wanted = self.calls, self.address.call
        self.calls += 1
        if not self.keep_all and wanted != '*':
            if call != wanted and (call > 0 if wanted is None else wanted >= 0):
                return  # not the call that is wanted; or a second one where one was expected, which read() refuses
            if wanted is not None and wanted < 0:
                # Only the last calls can be wanted: earlier ones are let go, and their memory with them.
                del self._kept[: max(0, len(self._kept) + 1 + wanted)]
        tensor = self._select(value)
        self._kept.append((call, tensor, tensor._version))
        if self.keep_all:
            self._notes.append(self.note())

    def noted(self) -> Any:
        """What :attr:`note` said when the wanted call was read, of a capture that keeps all of them."""
        wanted = self.address.call
        return self._notes[wanted if isinstance(wanted, int) else -1]

    def _select(self, value: Any) -> Tensor:
        item = self.address.item
        if item is not None:
            if not isinstance(value, (tuple, list)):
                raise self._error(f'gives a {type(value).__name__}, not a tuple; write it without [{item}]')
            if not -len(value) <= item < len(value):
                raise self._error(f'gives a tuple of {len(value)}, which has no [{item}]')
            value = value[item]
        if isinstance(value, Tensor):
            return value
        if isinstance(value, (tuple, list)):
            raise self._error(f'gives a tuple of {len(value)}; pick one with [k], as in {self.address.path}[0]')
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
        for _, tensor, version in picked:
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
        tensors = [tensor for _, tensor, _ in picked]
        return tensors if wanted == '*' else tensors[0]

    def _error(self, what: str) -> ValueError:
        return ValueError(f'{self.role} tap {self.name!r}: {str(self.address)!r} {what}; {LIST_ALL}')


def _compiled_around(model: nn.Module, path: str) -> str | None:
    """The innermost compiled module whose compiled code holds the module at ``path``; '' is the model itself."""
    found, module, walked = None, model, []
    for part in [*path.split('.'), None]:
        # The wrapper that torch.compile gives calls its own hooks itself; what compile() changed in place does not.
        wrapper = '_orig_mod' in module._modules
        if (wrapper and part is not None) or module._compiled_call_impl is not None:
            found = '.'.join(walked)
        if part is None:
            break
        module = getattr(module, part, None)
        if not isinstance(module, nn.Module):
            break
        walked.append(part)
    return found


@contextlib.contextmanager
def _attached(
    model: nn.Module, captures: Iterable[_Capture], countdown: dict[str, int] | None = None
) -> Iterator[None]:
    waiting = None if countdown is None else {n for n, calls in countdown.items() if calls > 0}

    def feed(capture: _Capture, value: Any) -> None:
        capture(value)
        if waiting is not None and capture.calls >= countdown[capture.name]:
            waiting.discard(capture.name)
            if not waiting:
                raise _Finished

    def output_hook(capture):
        def hook(module, args, output):
            feed(capture, output)

        return hook

    def input_hook(capture):
        def hook(module, args, kwargs):
            feed(capture, args[0] if args else next(iter(kwargs.values()), None))

        return hook

    handles, read_before = [], []
    try:
        for capture in captures:
            module = model.get_submodule(capture.address.path)
            if capture.address.port == 'in':
                read_before.append(module)
                handles.append(module.register_forward_pre_hook(input_hook(capture), with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(output_hook(capture)))
        with not_inplace(read_before):
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _watched_norms(model: nn.Module, captures: Iterable[_Capture]) -> Iterator[None]:
    """Let each capture note the normalisation layer that its tensor comes from."""
    last: list[str | None] = [None]

    def note(path: str | None) -> Callable[..., None]:
        def hook(*_) -> None:
            last[0] = path

        return hook

    handles = []
    norms = set()
    for path, module in model.named_modules():
        if is_norm(module):
            norms.add(path)
        # A block's projection runs beside its own layers, in some hosts after the last of them.
        if {'downsample', 'shortcut'} & set(path.split('.')):
            continue
        if is_norm(module):
            handles.append(module.register_forward_hook(note(path)))
        elif is_activation(module) or isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            handles.append(module.register_forward_hook(note(None)))
    for capture in captures:
        itself = capture.address.path if capture.address.port == 'out' and capture.address.path in norms else None
        capture.note = lambda itself=itself: itself or last[0]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def not_inplace(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Switch ``inplace`` off: an in-place activation would overwrite the input that is being read."""
    changed = [m for m in dict.fromkeys(modules) if getattr(m, 'inplace', False) is True]
    for module in changed:
        module.inplace = False
    try:
        yield
    finally:
        for module in changed:
            module.inplace = True


def is_activation(module: nn.Module) -> bool:
    """Whether a module is an activation of torch's or mmcv's."""
    kind = type(module)
    # mmcv registers its own (Swish, HSwish, Clip, …) beside torch's, without a common base class.
    return kind.__module__.startswith(('torch.nn.modules.activation', 'mmcv.cnn.bricks')) and kind.__name__ in {
        *(set(torch.nn.modules.activation.__all__) - {'MultiheadAttention'}),
        *('Swish', 'HSwish', 'HSigmoid', 'Clamp'),
    }


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer."""
    kinds = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
    return isinstance(module, kinds) or 'Norm' in type(module).__name__
