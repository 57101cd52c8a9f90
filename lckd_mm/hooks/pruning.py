"""PruningHook: magnitude pruning during training."""

import math
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from mmengine.dist import broadcast, is_distributed
from mmengine.hooks import EMAHook, Hook
from torch import Tensor, nn

from .. import arguments
from ..distillation import Distiller
from ..hosts import run_once, training_size, unwrapped
from ..registry import HOOKS
from ..storage.checkpoint import add_state, resumed_state
from .schedules import iterations


@HOOKS.register_module()
class PruningHook(Hook):
    r"""Prunes the backbone of the student (or of a host's plain model) by magnitude, with a cubic schedule.

    .. math:: s_t = s \left( 1 - \left( 1 - \frac{t}{t_1} \right)^3 \right), \qquad 0 \le t \le t_1

    Every ``interval`` iterations and at ``end``, the weights of smallest magnitude are pruned, as torch.nn.utils.prune
    does, until the fraction :math:`s_t` of each layer is pruned. Pruned weights stay 0 in every forward pass and get no
    gradient; neither momentum nor weight decay restores them. Checkpoints, EMA's average included, hold plain
    ``weight`` keys with zeros and load into a plain model. The masks are stored beside them under the key ``lckd_mm``
    and restored on resume.

    * ``unstructured``: single weights of convolutions and linear layers.
    * ``structured``: whole output channels of convolutions, those of smallest L1 norm. The convolution's bias is pruned
      with them, and so are weight and bias of a BatchNorm that directly reads the convolution's output. Without such a
      BatchNorm (the last convolution of a pre-activation block), the next layer reads zeros plus the identity, if any.
      The tensors keep their shapes, so this alone gives no speed-up.

    The first layer, which reads the image, is not pruned. The current sparsity is logged as ``sparsity``, a fraction of
    the prunable weights (or channels).

    Args:
        sparsity: :math:`s`, a fraction.
        kind: 'unstructured' or 'structured'.
        end: :math:`t_1`, in iterations; a float between 0 and 1 is a fraction of training.
        interval: in iterations.
    Raises:
        ValueError: values out of range, an unknown kind, a model without a backbone to prune; resuming from a file
            without masks, or with masks of other layers.
    Source: Zhu and Gupta, To Prune, or Not to Prune, arXiv 1710.01878, eq. 1, from 0 at the start; structured: Li et
        al., Pruning Filters for Efficient ConvNets, ICLR 2017, with zeros in place of smaller layers. Deviation: the
        defaults of end and interval are ours.
    Example: ``custom_hooks = [dict(type='lckd_mm.PruningHook', sparsity=0.8, kind='unstructured')]``
    """

    priority = 'VERY_HIGH'

    def __init__(self, sparsity: float, kind: str = 'unstructured', end: float = 0.5, interval: int = 20):
        self.sparsity = arguments.number('PruningHook', 'sparsity', sparsity, at_least=0, at_most=1)
        self.structured = arguments.choice('PruningHook', 'kind', kind, ('unstructured', 'structured')) == 'structured'
        self.end = arguments.number('PruningHook', 'end', end, at_least=0)
        self.interval = arguments.integer('PruningHook', 'interval', interval)
        self._layers: dict[str, nn.Module] = {}
        # _masks: a layer's weight name to its boolean mask, true where kept; _followers: a parameter pruned with a
        # layer's channels to that layer's weight name.
        self._masks: dict[str, Tensor] = {}
        self._followers: dict[str, str] = {}
        self._pruned = 0.0
        self._stored: dict[str, Tensor] | None = None
        self._handles: list[Any] = []
        self._stop = 0

    def before_run(self, runner) -> None:
        self._layers = self._find_layers(pruned_model(runner))
        # So that checkpoints written before the first iteration have masks too.
        self._masks = {n: torch.ones_like(m.weight, dtype=torch.bool) for n, m in self._layers.items()}

    def before_train(self, runner) -> None:
        model = pruned_model(runner)
        self._stop = round(iterations(self.end, 'iter', runner.max_iters))
        if self._stop >= runner.max_iters:
            raise ValueError(f'PruningHook: end={self.end} is not before the last of {runner.max_iters} iterations')
        if self.structured:
            self._followers = self._find_followers(model)
        if self._stored is not None:
            for name, mask in self._masks.items():
                if name not in self._stored or self._stored[name].shape != mask.shape:
                    raise ValueError(f'resume: the checkpoint has no mask of {name!r}: it pruned other layers')
                self._masks[name] = self._stored[name].to(mask.device)
            self._stored = None
            self._measure()
        parameters = dict(model.named_parameters())
        for name in [*self._masks, *self._followers]:
            if parameters[name].requires_grad:
                self._handles.append(parameters[name].register_hook(partial(self._mask_gradient, name)))
        self._apply(runner)
        which = f'{sum(m.numel() for m in self._masks.values())} weights of {len(self._layers)} layers'
        if self.structured:
            normed = sum(f.endswith('.weight') for f in self._followers)
            which = f'the channels of {len(self._layers)} layers; {normed} have a BatchNorm of their own'
        runner.logger.info(f'PruningHook: until iteration {self._stop}, prunes {which}')

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        t = runner.iter
        if t <= self._stop and (t % self.interval == 0 or t == self._stop):
            self._prune(self.sparsity_at(t))
        self._apply(runner)  # another hook may have restored pruned weights
        runner.message_hub.update_scalar('train/sparsity', self._pruned)

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
        add_state(checkpoint, pruning={name: mask.cpu() for name, mask in self._masks.items()})

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        self._stored = resumed_state(runner, checkpoint, 'pruning', 'PruningHook')

    def sparsity_at(self, t: int) -> float:
        """The scheduled sparsity at iteration ``t``; known once training has begun."""
        left = 1 - t / self._stop if t < self._stop else 0.0
        return self.sparsity * (1 - left**3)

    def _find_layers(self, model: nn.Module) -> dict[str, nn.Module]:
        kinds = (nn.modules.conv._ConvNd,) if self.structured else (nn.modules.conv._ConvNd, nn.Linear)
        found = getattr(model, 'backbone', nn.Module()).named_modules(prefix='backbone')
        layers = [(f'{name}.weight', module) for name, module in found if isinstance(module, kinds)][1:]
        if not layers:
            raise ValueError(f'PruningHook: {type(model).__name__} has no backbone with layers to prune')
        return dict(layers)

    @torch.no_grad()
    def _prune(self, sparsity: float) -> None:
        """Prune the smallest remaining weights, until this fraction of each layer is pruned."""
        for name, layer in self._layers.items():
            dim, left, size = _channel_dim(layer), self._left(name), layer.weight.abs()
            shape, most = left.shape, left.numel()
            if self.structured:
                size = size.transpose(0, dim).flatten(1).sum(1)
                shape, most = [-1 if d == dim else 1 for d in range(layer.weight.dim())], most - 1
            # In floating point 0.29 * 100 is below 29.
            more = min(math.floor(sparsity * left.numel() + 1e-9), most) - int((~left).sum())
            if more > 0:
                smallest = size.masked_fill(~left, math.inf).flatten().topk(more, largest=False).indices
                kept = left.flatten().index_fill(0, smallest, False)
                self._masks[name] = kept.view(shape).expand_as(layer.weight).clone()
        if is_distributed():
            # The ranks' weights are equal, but devices may break ties between equal magnitudes differently.
            for name, mask in self._masks.items():
                shared = mask.to(torch.uint8)
                broadcast(shared)
                self._masks[name] = shared.bool()
        self._measure()

    def _measure(self) -> None:
        left = [self._left(name) for name in self._masks]
        self._pruned = 1 - sum(int(m.sum()) for m in left) / sum(m.numel() for m in left)

    def _left(self, name: str) -> Tensor:
        """True for each weight of a layer, or each of its channels, that is kept."""
        mask = self._masks[name]
        return mask.transpose(0, _channel_dim(self._layers[name])).flatten(1).any(1) if self.structured else mask

    def _mask_of(self, name: str) -> Tensor:
        return self._masks[name] if name in self._masks else self._left(self._followers[name])

    def _mask_gradient(self, name: str, gradient: Tensor) -> Tensor:
        return gradient.masked_fill(~self._mask_of(name), 0)

    @torch.no_grad()
    def _apply(self, runner) -> None:
        averages = [h.ema_model.module for h in runner.hooks if isinstance(h, EMAHook)]
        for model in [pruned_model(runner), *map(student_of, averages)]:
            parameters = dict(model.named_parameters())
            for name in [*self._masks, *self._followers]:
                parameters[name].masked_fill_(~self._mask_of(name), 0)

    def _find_followers(self, model: nn.Module) -> dict[str, str]:
        """Parameters pruned with a layer's channels: its bias, and those of the BatchNorm that reads its output."""
        produced: dict[int, tuple[str, Tensor, int]] = {}
        followers = {
            f'{name.removesuffix("weight")}bias': name for name, layer in self._layers.items() if layer.bias is not None
        }

        def note(name, module, args, output):
            produced[id(output)] = name, output, output._version

        def match(path, module, args):
            name, tensor, version = produced.get(id(args[0]), (None, None, None))
            # The convolution's output itself, not a sum written into it in place.
            if tensor is args[0] and tensor._version == version and module.affine:
                followers.update({f'{path}.weight': name, f'{path}.bias': name})

        with ExitStack() as hooks:
            for name, layer in self._layers.items():
                hooks.callback(layer.register_forward_hook(partial(note, name)).remove)
            for path, module in model.named_modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    hooks.callback(module.register_forward_pre_hook(partial(match, path)).remove)
            try:
                run_once(model, training_size(model), 'tensor')
            except Exception:  # no plain forward, as in mmseg's Mask2Former
                run_once(model, training_size(model), 'predict')
        return followers


def pruned_model(runner: Any) -> nn.Module:
    """The runner's model without its wrapper; for a Distiller, the student."""
    return student_of(unwrapped(runner.model))


def student_of(model: nn.Module) -> nn.Module:
    return model.student if isinstance(model, Distiller) else model


def _channel_dim(layer: nn.Module) -> int:
    return 1 if isinstance(layer, nn.modules.conv._ConvTransposeNd) else 0
