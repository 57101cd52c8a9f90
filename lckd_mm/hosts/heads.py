"""Heads: the owner of a tap, whether its scores are sigmoids, and parts of a net that choose their own rows."""

from typing import NamedTuple

from torch import nn


def owner_head(model: nn.Module, path: str) -> nn.Module | None:
    """The innermost module on ``path`` that has ``num_classes``: a host's head."""
    parts = path.split('.')
    for end in range(len(parts), 0, -1):
        module = model.get_submodule('.'.join(parts[:end]))
        if hasattr(module, 'num_classes'):
            return module
    return None


def has_sigmoids(head: nn.Module | None) -> bool:
    """Whether a host's head scores each class by its own sigmoid rather than by a softmax."""
    own = getattr(head, 'use_sigmoid_cls', None)
    if own is not None:
        return bool(own)
    # CenterNet and CornerNet have a heatmap for each class.
    if any(hasattr(head, name) for name in ('loss_center_heatmap', 'loss_heatmap')):
        return True
    losses = [getattr(head, name, None) for name in ('loss_decode', 'loss_module', 'loss_cls')]
    losses = [part for loss in losses for part in (loss if isinstance(loss, nn.ModuleList) else [loss])]
    return any(getattr(loss, 'use_sigmoid', False) for loss in losses)


class Chooser(NamedTuple):
    """A part of a net that chooses the rows of its tensors, and the module inside which later tensors have them."""

    path: str
    reach: str
    rows: str


#: By class of the host, since all kinds derive from these: what the rows of their tensors are.
_CHOOSERS = {
    'BaseRoIExtractor': 'region that this net proposes',
    'DetrTransformerDecoder': 'query of this net',
    'SideAdapterNetwork': 'query of this net',
    'PointHead': 'point that this net chooses',
}


def row_choosers(model: nn.Module) -> list[Chooser]:
    """The parts of a net that choose regions, queries or points: row i of one net is another one than row i of another.

    Tensors inside such a part have these rows, and those that later modules beside it compute from it.
    """
    modules, found = dict(model.named_modules()), []
    for path, module in modules.items():
        rows = next((_CHOOSERS[kind.__name__] for kind in type(module).__mro__ if kind.__name__ in _CHOOSERS), None)
        if rows is None:
            continue
        reach = path if type(module).__name__ == 'PointHead' else path.rpartition('.')[0]
        while isinstance(modules[reach], nn.ModuleList):
            reach = reach.rpartition('.')[0]
        found.append(Chooser(path, reach, rows))
    return found


def comparable_parts(model: nn.Module) -> str:
    """Addresses of a detector or segmentor with :func:`row_choosers` that can be compared between two nets."""
    parts = ["the backbone (taps='backbone')"]
    if getattr(model, 'neck', None) is not None:
        parts.append("the neck (such as 'neck[0]')")
    if hasattr(getattr(model, 'rpn_head', None), 'rpn_cls'):
        parts.append("the RPN's class scores ('rpn_head.rpn_cls#*')")
    return ', '.join(parts)
