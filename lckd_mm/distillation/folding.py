"""Folding: the scale and shift of a frozen BatchNorm in the weights of the convolution before it."""

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .side import Feature, levels


class Folding:
    """Folds the BatchNorms of a net in eval mode into the convolutions before them, where runs show such pairs.

    The net's modules and weights stay as they are, for what reads them (a strict load, margins, ``inherit``); only the
    forward functions of both layers are replaced: the convolution gives what the BatchNorm gave, which passes it on.

    Source: :func:`torch.nn.utils.fusion.fuse_conv_bn_eval`.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        #: The convolutions that run; none of them is a submodule of the net.
        self.layers = nn.ModuleList()
        self._pairs: list[tuple[nn.Module, nn.Module]] = []

    def fold(self, run: Callable[[], Mapping[str, Feature]]) -> Mapping[str, Feature]:
        """Fold the pairs that run in ``run``: all that the one gives, and nothing else, goes into the other.

        A pair stays as it is if ``run`` gives the tensor between its layers. What was folded before is undone.

        Returns:
            What ``run`` gives, without folding.
        """
        self.undo()
        calls: Counter[nn.Module] = Counter()
        met: Counter[tuple[nn.Module, nn.Module]] = Counter()

        def convolved(conv: nn.Module, _: tuple, output: Tensor) -> None:
            calls[conv] += 1
            output.given_by = conv, output._version

        def normed(norm: nn.Module, args: tuple) -> None:
            calls[norm] += 1
            x = args[0] if args else None
            conv, version = getattr(x, 'given_by', (None, None))
            if conv is not None and x._version == version:
                met[conv, norm] += 1

        with contextlib.ExitStack() as stack:
            for module in self.model.modules():
                if type(module) is nn.Conv2d:
                    stack.enter_context(module.register_forward_hook(convolved))
                elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                    stack.enter_context(module.register_forward_pre_hook(normed))
            plain = run()
        # Whatever module the tap names: that of the convolution, one that holds it, the one that reads it.
        tapped = {getattr(x, 'given_by', (None,))[0] for feature in plain.values() for x in levels(feature)}
        for (conv, norm), count in met.items():
            if count == calls[conv] == calls[norm] and conv not in tapped:
                folded = fuse_conv_bn_eval(conv, norm)
                conv.forward, norm.forward = folded.forward, _same
                self.layers.append(folded)
                self._pairs.append((conv, norm))
        return plain

    def undo(self) -> None:
        """Let the net's own layers run again."""
        for layer in (layer for pair in self._pairs for layer in pair):
            del layer.forward
        self.layers, self._pairs = nn.ModuleList(), []


def _same(x: Tensor) -> Tensor:
    return x
