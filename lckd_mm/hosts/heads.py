"""Heads: the head whose class scores a tap reads, and whether it uses sigmoids."""

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
    losses = [getattr(head, name, None) for name in ('loss_decode', 'loss_module')]
    losses = [part for loss in losses for part in (loss if isinstance(loss, nn.ModuleList) else [loss])]
    return any(getattr(loss, 'use_sigmoid', False) for loss in losses)
