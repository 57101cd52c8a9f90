"""Lists the tensors of a model that can be tapped, with notes on each address; see tools/analysis/list_taps.py."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .address import Address
from .modules import is_activation, not_inplace, watch_input, watch_output
from .places import items_of
from .recording import PASSES, Pass

_WHEN = dict(zip(PASSES, ('in a plain forward', 'in a prediction', 'with the loss', 'in training')))
_ONLY = dict(zip(PASSES[1:], (['not in a plain forward'], ['only with the loss'], ['only in training'])))


@dataclass
class Tappable:
    """A tensor that can be tapped: its module's class, how often it was produced in a run, and its last shape.

    ``tensor`` and its version counter are of the last call; it is set to None once the run has been evaluated, to free
    its memory for the next run.
    """

    place: Address
    kind: str
    calls: int
    shape: str
    tensor: Tensor | None
    version: int
    notes: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        return str(replace(self.place, call=None if self.calls == 1 else -1))

    @property
    def note(self) -> str:
        return ', '.join(self.notes)

    def overwritten(self) -> bool:
        return self.tensor._version != self.version


def list_taps(
    model: nn.Module, run: Callable[[Pass], Any], gradient: bool = False
) -> tuple[list[Tappable], dict[Pass, Exception]]:
    """All module outputs that can be tapped, and the inputs of activations, in order of execution.

    Notes on an address:

    * 'overwritten': the output is later changed in place, so it cannot be tapped;
    * 'before ReLU' (or another activation): that activation reads the tensor next; for an overwritten output the note
      names the address to tap instead;
    * 'no gradient': a student's tap cannot be there;
    * '@preact too': the module ends in an activation;
    * 'not in a plain forward', 'only with the loss', 'only in training': other passes alone run the module.

    An activation's input has its own row only if it is not the same tensor as a tappable output.

    Args:
        run: runs the model in a pass; called twice for each. Only tensors, and tuples or lists with tensors, also
            nested ones, are listed; of a pass that fails, what ran before.
        gradient: whether the runs compute gradients, as in training; needed to note a missing one.
    Returns:
        The rows, and the errors of the passes that failed.
    """
    found: dict[Address, Tappable] = {}
    failures: dict[Pass, Exception] = {}
    for one in PASSES:
        if one.mode == 'predict' and Pass() not in failures:
            continue  # a prediction runs what a plain forward does
        rows, failure = _find_tappable(model, partial(run, one), gradient)
        if failure is not None:
            failures[one] = failure
        paths = {address.path for address in found}
        for address, row in rows.items():
            if address in found:
                if row.calls > found[address].calls and failure is None:
                    found[address].notes.append(f'{row.calls} calls {_WHEN[one]}')
                    found[address].calls = row.calls
            elif address.path not in paths:
                found[address] = row
                row.notes += _ONLY.get(one, ())
    return list(found.values()), failures


def _find_tappable(
    model: nn.Module, run: Callable[[], Any], gradient: bool
) -> tuple[dict[Address, Tappable], Exception | None]:
    modules = {path: module for path, module in model.named_modules() if path}
    activations = [module for module in modules.values() if is_activation(module)]
    # An unchanged run shows what is overwritten. In the second run no activation works in place, so that its input and
    # output are two tensors.
    overwritten = {address for address, row in _watch(modules, run, [])[0].items() if row.overwritten()}
    with not_inplace(activations):
        seen, read, activated, failure = _watch(modules, run, activations)
    kept = {id(row.tensor) for address, row in seen.items() if address.port == 'out' and address not in overwritten}
    found = {}
    for address, row in seen.items():
        if address.port == 'in' and (id(row.tensor) in kept or row.overwritten()):
            continue
        if address in overwritten:
            row.notes.append('overwritten')
        for reader, version in read.get(id(row.tensor), []):
            if version == row.version:
                kind = type(modules[reader.path]).__name__
                runs = seen[replace(reader, call=None)].calls
                where = f': tap {reader if runs > 1 else replace(reader, call=None)}' if address in overwritten else ''
                row.notes.append(f'before {kind}{where}')
        ends_in = activated.get(id(row.tensor))
        if ends_in == row.version and not address.items and row.calls == 1 and any(modules[address.path].children()):
            row.notes.append(f'{address.path}@preact too')
        if gradient and not row.tensor.requires_grad:
            row.notes.append('no gradient')
        found[address] = row
    for row in seen.values():
        row.tensor = None
    return found, failure


def _watch(
    modules: dict[str, nn.Module], run: Callable[[], Any], activations: list[nn.Module]
) -> tuple[dict[Address, Tappable], dict[int, list[tuple[Address, int]]], dict[int, int], Exception | None]:
    """Run once; return the tensors by address, and by tensor id the activations that read it and those that return it.

    The latter two also have the tensor's version counter at that time. The last is the error of a run that fails.
    """
    seen: dict[Address, Tappable] = {}
    read: dict[int, list[tuple[Address, int]]] = {}
    activated: dict[int, int] = {}
    # Kept alive until the run has ended, so that no id is reused.
    alive: list[Any] = []

    def see(address: Address, tensor: Any) -> None:
        if isinstance(tensor, Tensor):
            calls = seen.pop(address).calls + 1 if address in seen else 1
            kind, shape = type(modules[address.path]).__name__, str(tuple(tensor.shape))
            seen[address] = Tappable(address, kind, calls, shape, tensor, tensor._version)

    def gave(path: str, output: Any) -> None:
        alive.append(output)
        for items, tensor in items_of(output):
            see(Address(path, items), tensor)
        if modules[path] in activations and isinstance(output, Tensor):
            activated[id(output)] = output._version

    def took(path: str, tensor: Any) -> None:
        alive.append(tensor)
        address = Address(path, port='in')
        see(address, tensor)
        if isinstance(tensor, Tensor):
            call = seen[address].calls - 1
            read.setdefault(id(tensor), []).append((replace(address, call=call), tensor._version))

    with contextlib.ExitStack() as stack:
        for path, module in modules.items():
            stack.enter_context(watch_output(module, partial(gave, path)))
            if module in activations:
                stack.enter_context(watch_input(module, partial(took, path)))
        # With gradient, do not keep activations for a backward that never comes.
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(lambda _: None, lambda _: None))
        try:
            run()
        except Exception as error:  # a host may raise anything
            return seen, read, activated, error
    return seen, read, activated, None
