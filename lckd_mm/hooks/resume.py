"""Resuming as if there had been no interruption: random states in checkpoints, and safe checkpoint files."""

import random
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook, EMAHook, Hook, SyncBuffersHook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop

from ..errors import WriteError
from ..hosts import unwrapped
from ..registry import HOOKS
from ..storage.checkpoint import add_state, stored_state
from ..storage.files import install, remove_partials


def random_state() -> dict[str, Any]:
    """The random states of this process: Python's, numpy's, torch's, and its CUDA device's, if it uses one.

    Holds only tensors and plain values, so that a file with it can be read with ``weights_only``.
    """
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    return dict(
        python=dict(version=version, words=torch.tensor(words), gauss=gauss),
        numpy=dict(words=torch.from_numpy(keys.astype(np.int64)), at=position, has_gauss=has_gauss, cached=cached),
        torch=torch.get_rng_state(),
        cuda=torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    )


def set_random_state(state: dict[str, Any]) -> None:
    """Restore :func:`random_state`; a CUDA device's only if this process uses one."""
    # The Runner maps the whole file to its device, but generators take their states from the CPU.
    python, numpy = state['python'], state['numpy']
    random.setstate((python['version'], tuple(python['words'].tolist()), python['gauss']))
    words = numpy['words'].cpu().numpy().astype(np.uint32)
    np.random.set_state(('MT19937', words, numpy['at'], numpy['has_gauss'], numpy['cached']))
    torch.set_rng_state(state['torch'].cpu())
    if state['cuda'] is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state['cuda'].cpu())


@HOOKS.register_module()
class ResumeHook(Hook):
    """Stores every rank's random states in each checkpoint, and restores them on resume.

    With deterministic operations, a resumed run is then bit-identical to an uninterrupted one. This holds for
    iteration-based loops, and for epoch-based ones without persistent workers from a checkpoint at the end of an epoch,
    with the same number of ranks. Otherwise the log has a warning.

    The states are stored under the file's key ``lckd_mm``, with each rank's own buffers (BatchNorm statistics) where
    they differ from the first rank's in ``state_dict``.

    A checkpoint is written before the validation of the same iteration or epoch; a resumed run starts with the
    validation that is due at its checkpoint. Random states are restored after each validation, so that none affects
    training.

    ``tools/train.py`` adds this hook; ``default_hooks.resume=None`` removes it.

    Example: ``default_hooks = dict(resume=dict(type='lckd_mm.ResumeHook'))``
    """

    # After every hook that may draw random numbers, before CheckpointHook.
    priority = 80

    def __init__(self) -> None:
        self._resumed: dict[str, Any] | None = None
        self._before_val: dict[str, Any] | None = None
        self._ranks: list[dict] = []
        self._ranks_at: tuple[int, int] | None = None

    def before_run(self, runner) -> None:
        install()

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if runner._resume:
            self._resumed = stored_state(checkpoint, 'random') or {}
            if not self._resumed.get('validated'):
                # Last, so that every other hook is ready for a validation.
                runner.register_hook(_DueValidation(), priority='LOWEST')

    def before_train(self, runner) -> None:
        if self._resumed is None:
            return
        ranks, loop = self._resumed.get('ranks', ()), runner.train_loop
        loader, self._resumed = loop.dataloader, None
        fast, reasons = getattr(loop, 'fast_forward_on_resume', False), []
        if len(ranks) != get_world_size():
            reasons.append(f'the checkpoint has random states of {len(ranks)} ranks instead of {get_world_size()}')
        if isinstance(loop, EpochBasedTrainLoop):
            if loader.num_workers > 0 and loader.persistent_workers:
                reasons.append('persistent workers start again (train_dataloader.persistent_workers=False avoids it)')
            if runner.iter != runner.epoch * len(loader):
                reasons.append('the checkpoint is from the middle of an epoch, which starts again')
        if fast:
            reasons.append('train_cfg.fast_forward_on_resume changes the order of the images')
        if reasons:
            text = '; '.join(reasons)
            runner.logger.warning(f'resume: the run is not bit-identical to an uninterrupted one: {text}')
        if len(ranks) != get_world_size():
            return
        own = ranks[get_rank()]
        with torch.no_grad():
            buffers = _buffers(runner)
            for name, value in own['buffers'].items():
                if name in buffers:
                    buffers[name].copy_(value)
        set_random_state(own)
        # The maintained fork can skip the batches already trained on without drawing them.
        if isinstance(loop, IterBasedTrainLoop) and not fast:
            # The loop first draws all batches already trained on again, which changes the random states.
            loop.dataloader_iterator = _Rewound(loop, runner.iter, lambda: set_random_state(own))

    def before_val(self, runner) -> None:
        self._before_val = random_state()

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        # Before CheckpointHook, and after SyncBuffersHook has averaged the ranks' statistics.
        self._gather(runner)

    def after_val(self, runner) -> None:
        if self._before_val is not None:
            set_random_state(self._before_val)
        self._before_val = self._ranks_at = None

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None) -> None:
        self._gather_before_saving(runner, False, self.every_n_train_iters, self.is_last_train_iter)

    def after_train_epoch(self, runner) -> None:
        self._gather_before_saving(runner, True, self.every_n_epochs, self.is_last_train_epoch)

    def _gather_before_saving(self, runner, by_epoch: bool, due: Callable, last: Callable) -> None:
        saving = [h for h in runner.hooks if isinstance(h, CheckpointHook) and h.by_epoch == by_epoch]
        if any(due(runner, h.interval, h.save_begin) or (h.save_last and last(runner)) for h in saving):
            self._gather(runner)

    def _gather(self, runner) -> None:
        """Gather all ranks' states in advance, since only the first rank saves."""
        if get_world_size() == 1:
            return
        state = self._before_val or random_state()
        own = dict(state, buffers={k: v.detach().cpu() for k, v in _buffers(runner).items()})
        ranks = all_gather_object(own)
        first = ranks[0]['buffers']
        for state in ranks[1:]:
            state['buffers'] = {k: v for k, v in state['buffers'].items() if not torch.equal(v, first[k])}
        ranks[0]['buffers'] = {}
        self._ranks, self._ranks_at = ranks, (runner.epoch, runner.iter)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        if self._ranks_at == (runner.epoch, runner.iter):
            ranks = self._ranks
        else:
            # A single rank, or a hook that saves on its own.
            ranks = [dict(self._before_val or random_state(), buffers={})]
        # CheckpointHook rewrites the last checkpoint if its validation was the best.
        add_state(checkpoint, random=dict(version=1, ranks=ranks, validated=self._before_val is not None))


class _DueValidation(Hook):
    """Starts a resumed training with the validation that its loop would have run at the checkpoint."""

    def before_train(self, runner) -> None:
        loop = runner.train_loop
        if not isinstance(loop, (EpochBasedTrainLoop, IterBasedTrainLoop)) or runner.val_loop is None:
            return
        by_epoch = isinstance(loop, EpochBasedTrainLoop)
        done, end = (loop.epoch, loop.max_epochs) if by_epoch else (loop.iter, loop.max_iters)
        whole = not by_epoch or loop.iter == loop.epoch * len(loop.dataloader)
        loop._decide_current_val_interval()
        if done and whole and done >= loop.val_begin and (done % loop.val_interval == 0 or done == end):
            runner.logger.info('resume: first the validation that is due at this checkpoint')
            for hook in runner.hooks:
                if isinstance(hook, SyncBuffersHook):
                    hook.called_in_train = by_epoch  # the ranks' statistics were averaged at the epoch's end
            runner.val_loop.run()


class _Rewound:
    """A loop's iterator that, after ``skip`` batches, restores the random states and the loop's own iterator."""

    def __init__(self, loop: IterBasedTrainLoop, skip: int, put_back: Callable[[], None]):
        self._loop, self._iterator, self._left, self._put_back = loop, loop.dataloader_iterator, skip, put_back

    def __getattr__(self, name: str) -> Any:
        return getattr(self._iterator, name)

    def __next__(self) -> Any:
        if self._left == 0:
            self._loop.dataloader_iterator = self._iterator
            self._put_back()
        self._left -= 1
        return next(self._iterator)

    def skip_iter(self, count: int) -> None:
        """Draw the batches: the maintained fork would advance only the sampler, and not the workers' random states."""
        for _ in range(count):
            next(self)


def _buffers(runner) -> dict[str, torch.Tensor]:
    """The buffers of the model and of its moving average (EMA), which is validated."""
    found = dict(unwrapped(runner.model).named_buffers())
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            found |= {f'(ema) {name}': buffer for name, buffer in hook.ema_model.module.named_buffers()}
    return found


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, with the same arguments, that never leaves a folder without a good checkpoint.

    An outdated file (``max_keep_ckpts``, the former best) is removed only after the new one is written, so the disk
    briefly holds one more. Temporary files of killed processes are removed at the start. ``tools/train.py`` uses it in
    place of CheckpointHook.

    Raises:
        WriteError: a file cannot be written, as on a full disk; the message names the last good checkpoint.
    Example: ``default_hooks = dict(checkpoint=dict(type='lckd_mm.SafeCheckpointHook', interval=5, save_best='auto'))``
    """

    def before_run(self, runner) -> None:
        install()

    def before_train(self, runner) -> None:
        super().before_train(runner)
        if self.last_ckpt is None and 'last_ckpt' in runner.message_hub.runtime_info:
            # The previous session's last file: it is rewritten if the validation rerun on resume is the best.
            self.last_ckpt = runner.message_hub.get_info('last_ckpt')
        if is_main_process():
            for folder in {self.out_dir, runner.work_dir}:
                for name in remove_partials(folder):
                    runner.logger.info(f'removed {name}, which a killed process left behind')

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        before, limit = self.last_ckpt, self.max_keep_ckpts
        if limit > 0:
            # Keep one more until the new file is there, and list it there: if this run is killed before it removes the
            # outdated file, a resumed one does.
            self.max_keep_ckpts, self.keep_ckpt_ids = limit + 1, deque(self.keep_ckpt_ids)
        try:
            super()._save_checkpoint_with_step(runner, step, meta)
        except OSError as error:
            newest = self.last_ckpt if self.last_ckpt and self.file_backend.exists(self.last_ckpt) else before
            good = f'the last good checkpoint is {newest}' if newest else 'there is no checkpoint yet'
            raise WriteError(f'{error}; {good}; continue with --resume') from error
        finally:
            self.max_keep_ckpts = limit
        while 0 < limit < len(self.keep_ckpt_ids):
            outdated = self.filename_tmpl.format(self.keep_ckpt_ids.popleft())
            if is_main_process():
                self._remove(self.file_backend.join_path(self.out_dir, outdated))

    def _save_best_checkpoint(self, runner, metrics: dict) -> None:
        # mmengine removes the former best before it writes the new one.
        backend = self.file_backend
        self.file_backend = later = _RemovingLater(backend)
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            self.file_backend = backend
        best = {getattr(self, 'best_ckpt_path', None), *getattr(self, 'best_ckpt_path_dict', {}).values()}
        for path in set(later.paths) - best:
            self._remove(path)

    def _remove(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):
            self.file_backend.rmtree(path)  # DeepSpeed's checkpoints are folders


class _RemovingLater:
    """A file backend that notes what is to be removed and removes nothing."""

    def __init__(self, backend: Any):
        self._backend, self.paths = backend, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self.paths.append(path)

    rmtree = remove
