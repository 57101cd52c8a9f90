"""Resolves ``@preact`` to the input of the activation that ends a module."""

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from .address import Address
from .capture import TapError
from .modules import is_activation, is_norm, not_inplace, watch_output


def resolve_preact(
    model: nn.Module, run: Callable[[], Any], addresses: Mapping[str, Address], role: str
) -> dict[str, Address]:
    """Map each ``@preact`` address to the input of the activation that ends its module; silent ones are left out.

    Raises:
        ValueError: a module does not end in an activation; the message names neighbours that can be tapped.
    """
    stages: dict[str, list[str]] = {}  # a stage's path to the taps that name it
    for name, address in addresses.items():
        stages.setdefault(address.path, []).append(name)
    if not stages:
        return {}
    modules = dict(model.named_modules())
    paths = {m: p for p, m in modules.items()}
    leaves = [m for p, m in modules.items() if p and not any(m.children())]
    order: list[tuple[nn.Module, int, Any]] = []  # (leaf, its call number, output), in order of execution
    calls: dict[nn.Module, int] = dict.fromkeys(leaves, 0)
    ends: dict[str, tuple[int, Any]] = {}

    def leaf_ran(module: nn.Module, output: Any) -> None:
        order.append((module, calls[module], output))
        calls[module] += 1

    def stage_ran(path: str, output: Any) -> None:
        ends[path] = (len(order), output)

    with contextlib.ExitStack() as stack:
        for leaf in leaves:
            stack.enter_context(watch_output(leaf, partial(leaf_ran, leaf)))
        for path in stages:
            stack.enter_context(watch_output(modules[path], partial(stage_ran, path)))
        stack.enter_context(not_inplace(filter(is_activation, leaves)))
        # A run may fail behind the modules: trace() reports those that have not fired.
        with contextlib.suppress(Exception):
            run()
    resolved: dict[str, Address] = {}
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
            raise TapError(
                f'{role} tap {taps[0]!r}: {path!r} does not end in an activation, so {path}@preact has no '
                f'meaning; write one of {", ".join(options)}'
            )
        module, call, _ = last
        which = None if calls[module] == 1 else -1 if call == calls[module] - 1 else call
        for name in taps:
            resolved[name] = Address(paths[module], port='in', call=which)
    return resolved
