"""PruningHook: magnitude pruning during training."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from mmengine.dist import broadcast, is_distributed
from mmengine.hooks import EMAHook, Hook
from torch import Tensor, nn
from torch.nn.utils import prune

from .. import arguments
from ..distillation import Distiller
from ..hosts import run_once, training_size, unwrapped
from ..registry import HOOKS
from ..storage.checkpoint import STATE_KEY
from .schedules import epoch_length

_KINDS = ('unstructured', 'structured')


@HOOKS.register_module()
class PruningHook(Hook):
    r"""Prunes the student (or a host's plain model) by magnitude, with a cubic schedule of the sparsity.

    .. math:: s_t = s_1 + (s_0 - s_1) \left( 1 - \frac{t - t_0}{t_1 - t_0} \right)^3, \qquad t_0 \le t \le t_1

    At ``begin``, every ``interval`` iterations, and at ``end``, torch.nn.utils.prune selects the weights of smallest
    magnitude until the fraction :math:`s_t` of the prunable ones is pruned; pruned weights stay pruned. They are 0 in
    every forward pass and get no gradient; neither momentum nor weight decay restores them. The modules keep their
    parameters: checkpoints, EMA's average included, hold plain ``weight`` keys with zeros and load into a plain model.
    The masks are stored beside them under the key ``lckd_mm`` and restored on resume.

    * ``unstructured``: single weights, the smallest of each layer or, with ``scope='global'``, of all layers together.
    * ``structured``: whole output channels, those of smallest L1 norm in each layer. The convolution's bias is pruned
      with them, and so are weight and bias of a BatchNorm that directly reads the convolution's output. Without such a
      BatchNorm (the last convolution of a pre-activation block), the next layer reads zeros plus the identity, if any.
      The tensors keep their shapes, so this alone gives no speed-up.

    The current sparsity is logged as ``sparsity``, a fraction of the prunable weights (or channels).

    Args:
        sparsity: :math:`s_1`, a fraction.
        initial: :math:`s_0`.
        kind, scope: as above.
        begin, end: :math:`t_0` and :math:`t_1`, in units of ``by``; a float between 0 and 1 is a fraction of training.
        by: 'iter', or 'epoch': a pass over the training data, in iteration-based loops too.
        interval: in iterations.
        within: modules whose convolutions (and linear layers, if unstructured) are pruned; [''] is the whole model.
        first: whether to prune their first layer too, which reads the image. Heads, with the layers of the class
            scores, are outside the backbone.
        exclude: regular expressions; layers whose names match one are not pruned. Norms are pruned only as above.
    Raises:
        ValueError: values out of range, an unknown kind or scope, no such module, no layer to prune; resuming from a
            file without masks, or with masks of other layers.
    Source: Zhu and Gupta, To Prune, or Not to Prune, arXiv 1710.01878, eq. 1; structured: Li et al., Pruning Filters
        for Efficient ConvNets, ICLR 2017, with zeros in place of smaller layers. Deviation: the defaults of begin, end
        and interval are ours.
    """

    priority = 'VERY_HIGH'

    def __init__(
        self,
        sparsity: float,
        kind: str = 'unstructured',
        scope: str = 'layer',
        initial: float = 0.0,
        begin: float = 0,
        end: float = 0.5,
        by: str = 'iter',
        interval: int = 20,
        within: Sequence[str] = ('backbone',),
        first: bool = False,
        exclude: Sequence[str] = (),
    ):
        who = 'PruningHook'
        for name, value in dict(sparsity=sparsity, initial=initial, begin=begin, end=end).items():
            arguments.number(who, name, value, at_least=0)
        arguments.whole(who, 'interval', interval)
        arguments.switch(who, 'first', first)
        if not initial <= sparsity < 1:
            raise ValueError(
                f'PruningHook: initial and sparsity are parts of 1, in this order, got {initial} and {sparsity}'
            )
        arguments.choice('PruningHook', 'kind', kind, _KINDS)
        if scope not in ('layer', 'global') or (scope == 'global' and kind == 'structured'):
            raise ValueError(
                f"PruningHook: scope must be 'layer', or 'global' with kind='unstructured', got {scope!r} with {kind!r}"
            )
        arguments.choice('PruningHook', 'by', by, ('iter', 'epoch'))
        within = arguments.listed(who, 'within', within, 'names of modules')
        exclude = arguments.listed(who, 'exclude', exclude, 'regular expressions')
        if not within or not all(isinstance(path, str) for path in within):
            raise ValueError(
                f"PruningHook: within must be a list of names of modules ('' is the model), got {within!r}"
            )
        for pattern in exclude:
            arguments.text(who, 'exclude', pattern)
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f'PruningHook: exclude has no regular expression {pattern!r}: {error}') from None
        self.sparsity, self.kind, self.scope, self.initial = sparsity, kind, scope, initial
        self.begin, self.end, self.by, self.interval = begin, end, by, interval
        self.within, self.exclude, self.first = within, exclude, first
        self._layers: dict[str, nn.Module] = {}
        # _masks: a layer's weight name to its boolean mask, true where kept; _followers: a parameter pruned with a
        # layer's channels to that layer's weight name.
        self._masks: dict[str, Tensor] = {}
        self._followers: dict[str, str] = {}
        self._part = 0.0
        self._stored: dict[str, Tensor] | None = None
        self._handles: list[Any] = []
        self._start, self._stop = 0, 0

    def before_run(self, runner) -> None:
        model = pruned_model(runner)
        self._layers = self._find_layers(model)
        # So that checkpoints written before the first iteration have masks too.
        self._masks = {n: torch.ones_like(m.weight, dtype=torch.bool) for n, m in self._layers.items()}

    def before_train(self, runner) -> None:
        model = pruned_model(runner)
        unit = 1 if self.by == 'iter' else epoch_length(runner)
        self._start, self._stop = (
            round(t * (runner.max_iters if isinstance(t, float) and 0 < t < 1 else unit))
            for t in (self.begin, self.end)
        )
        if not self._start <= self._stop < runner.max_iters:
            raise ValueError(
                f'PruningHook: it begins at iteration {self._start} and ends at {self._stop}, of {runner.max_iters}; '
                'begin must not come after end, and some training must be left after it'
            )
        if self.kind == 'structured':
            self._followers = self._find_followers(model)
        if self._stored is not None:
            self._restore()
        parameters = dict(model.named_parameters())
        for name in self._everything():
            parameter = parameters[name]
            if parameter.requires_grad:
                self._handles.append(parameter.register_hook(self._gradient_mask(name)))
        self._apply(runner)
        which = f'{sum(m.numel() for m in self._masks.values())} weights of {len(self._layers)} layers'
        if self.kind == 'structured':
            normed = sum(f.endswith('.weight') for f in self._followers)
            which = f'the channels of {len(self._layers)} layers, of which {normed} have a BatchNorm of their own'
        runner.logger.info(f'PruningHook: prunes {which} from iteration {self._start} to {self._stop}')

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        t = runner.iter
        if self._start <= t <= self._stop and ((t - self._start) % self.interval == 0 or t == self._stop):
            self._prune(self.sparsity_at(t))
        self._apply(runner)  # another hook may have restored pruned weights
        runner.message_hub.update_scalar('train/sparsity', self._part)

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None) -> None:
        self._apply(runner)

    def before_val_epoch(self, runner) -> None:
        self._apply(runner)  # EMA's average may have been updated since after_train_iter

    def after_train(self, runner) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        self._apply(runner)
        masks = {name: mask.cpu() for name, mask in self._masks.items()}
        checkpoint.setdefault(STATE_KEY, dict(version=1))['pruning'] = masks

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if not getattr(runner, '_resume', False):
            return
        self._stored = (checkpoint.get(STATE_KEY) or {}).get('pruning')
        if self._stored is None:
            raise ValueError(
                'resume: the checkpoint has no masks of pruned weights, so it is of a run without PruningHook; start '
                'from it with load_from instead of resuming'
            )

    def sparsity_at(self, t: int) -> float:
        """The scheduled sparsity at iteration ``t``; known once training has begun."""
        part = min(max((t - self._start) / max(self._stop - self._start, 1), 0.0), 1.0)
        if self._stop == self._start and t >= self._stop:
            part = 1.0
        return self.sparsity + (self.initial - self.sparsity) * (1 - part) ** 3

    def _find_layers(self, model: nn.Module) -> dict[str, nn.Module]:
        kinds = (nn.modules.conv._ConvNd,) if self.kind == 'structured' else (nn.modules.conv._ConvNd, nn.Linear)
        layers = {}
        for path in self.within:
            try:
                root = model.get_submodule(path)
            except AttributeError:
                raise ValueError(f'PruningHook: within names no module {path!r} of {type(model).__name__}') from None
            for name, module in root.named_modules(prefix=path):
                if isinstance(module, kinds) and not any(re.search(pattern, name) for pattern in self.exclude):
                    layers[f'{name}.weight'] = module
        if not self.first:
            layers = dict(list(layers.items())[1:])
        if not layers:
            raise ValueError(
                f'PruningHook: no layer to prune within {self.within} of {type(model).__name__}, without the first '
                f'and those of exclude={self.exclude}; name other modules with within=[…]'
            )
        return layers

    @torch.no_grad()
    def _prune(self, sparsity: float) -> None:
        """Prune the smallest remaining weights, until this fraction of each layer (or of all) is pruned."""
        if self.kind == 'structured':
            for name, layer in self._layers.items():
                dim, left = _channel_dim(layer), self._channels(name)
                more = min(_part(sparsity, left), len(left) - 1) - int((~left).sum())
                if more > 0:
                    alive = layer.weight.index_select(dim, left.nonzero().flatten())
                    kept = prune.LnStructured(more, n=1, dim=dim).compute_mask(alive, torch.ones_like(alive))
                    left[left.clone()] = kept.transpose(0, dim).flatten(1).any(1)
                    shape = [-1 if d == dim else 1 for d in range(layer.weight.dim())]
                    self._masks[name] = left.view(shape).expand_as(layer.weight).clone()
        elif self.scope == 'layer':
            for name, layer in self._layers.items():
                self._masks[name] = _without_smallest(layer.weight, self._masks[name], sparsity)
        else:
            weights = torch.cat([layer.weight.flatten() for layer in self._layers.values()])
            left = _without_smallest(weights, torch.cat([m.flatten() for m in self._masks.values()]), sparsity)
            parts = left.split([mask.numel() for mask in self._masks.values()])
            self._masks = {n: part.view_as(m) for (n, m), part in zip(self._masks.items(), parts, strict=True)}
        if is_distributed():
            # The ranks' weights are equal, but devices may break ties between equal magnitudes differently.
            for name, mask in self._masks.items():
                shared = mask.to(torch.uint8)
                broadcast(shared)
                self._masks[name] = shared.bool()
        self._count()

    def _count(self) -> None:
        left = [self._channels(n) if self.kind == 'structured' else m for n, m in self._masks.items()]
        self._part = 1 - sum(int(m.sum()) for m in left) / sum(m.numel() for m in left)

    def _channels(self, name: str) -> Tensor:
        """``(channels,)``, true for each channel that is kept."""
        return self._masks[name].transpose(0, _channel_dim(self._layers[name])).flatten(1).any(1)

    def _everything(self) -> Iterator[str]:
        yield from self._masks
        yield from self._followers

    def _mask_of(self, name: str) -> Tensor:
        return self._masks[name] if name in self._masks else self._channels(self._followers[name])

    def _gradient_mask(self, name: str) -> Callable[[Tensor], Tensor]:
        return lambda gradient: gradient.masked_fill(~self._mask_of(name), 0)

    @torch.no_grad()
    def _apply(self, runner) -> None:
        averages = [h.ema_model.module for h in runner.hooks if isinstance(h, EMAHook)]
        for model in [pruned_model(runner), *map(student_of, averages)]:
            parameters = dict(model.named_parameters())
            for name in self._everything():
                parameters[name].masked_fill_(~self._mask_of(name), 0)

    def _restore(self) -> None:
        for name, mask in self._masks.items():
            if name not in self._stored or self._stored[name].shape != mask.shape:
                raise ValueError(f'resume: the checkpoint has no mask of {name!r}, so that it pruned other layers')
            self._masks[name] = self._stored[name].to(mask.device)
        self._stored = None
        self._count()

    def _find_followers(self, model: nn.Module) -> dict[str, str]:
        """Parameters pruned with a layer's channels: its bias, and those of the BatchNorm that reads its output."""
        produced: dict[int, tuple[str, Tensor, int]] = {}
        followers = {
            f'{name.removesuffix("weight")}bias': name for name, layer in self._layers.items() if layer.bias is not None
        }

        def note(name):
            def hook(module, args, output):
                produced[id(output)] = name, output, output._version

            return hook

        def match(path):
            def hook(module, args):
                name, tensor, version = produced.get(id(args[0]), (None, None, None))
                # The convolution's output itself, not a sum written into it in place.
                if tensor is args[0] and tensor._version == version and module.affine:
                    followers.update({f'{path}.weight': name, f'{path}.bias': name})

            return hook

        handles = [layer.register_forward_hook(note(name)) for name, layer in self._layers.items()]
        handles += [
            module.register_forward_pre_hook(match(path))
            for path, module in model.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
        ]
        try:
            run_once(model, training_size(model), 'tensor')
        finally:
            for handle in handles:
                handle.remove()
        return followers


def pruned_model(runner: Any) -> nn.Module:
    """The runner's model without its wrapper; for a Distiller, the student."""
    return student_of(unwrapped(runner.model))


def student_of(model: nn.Module) -> nn.Module:
    return model.student if isinstance(model, Distiller) else model


def _channel_dim(layer: nn.Module) -> int:
    return 1 if isinstance(layer, nn.modules.conv._ConvTransposeNd) else 0


def _part(sparsity: float, mask: Tensor) -> int:
    return math.floor(sparsity * mask.numel() + 1e-9)


def _without_smallest(weight: Tensor, mask: Tensor, sparsity: float) -> Tensor:
    """The mask with the smallest remaining magnitudes pruned, until the fraction ``sparsity`` is reached."""
    more = _part(sparsity, mask) - int((~mask).sum())
    if more <= 0:
        return mask
    alive, left = weight[mask], mask.clone()
    left[mask] = prune.L1Unstructured(more).compute_mask(alive, torch.ones_like(alive)) > 0
    return left
