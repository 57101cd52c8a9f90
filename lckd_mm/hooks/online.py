"""OnlineHook: stores, exports and validates nets that learn together."""

import copy
import re
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_distributed, master_only
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapperDict
from mmengine.structures import PixelData

from ..distillation import OnlineDistiller
from ..distillation.online_optim import OnlineDataParallel
from ..hosts import host_of
from ..registry import HOOKS
from ..storage.checkpoint import STATE_KEY, add_state, resumed_state, stored_state
from ..storage.files import install, read_checkpoint, save_whole
from .distillation import distiller_of
from .rehearsal import RehearsalHook


@HOOKS.register_module()
class OnlineHook(Hook):
    """Stores and validates all that an :class:`~lckd_mm.distillation.OnlineDistiller` has beside net 0.

    Checkpoints: the other nets, connectors and critics are stored under the key ``lckd_mm`` and restored on resume;
    ``state_dict`` holds only net 0. Beside each checkpoint ``epoch_40.pth`` the other nets are written as plain
    checkpoints, ``epoch_40.net1.pth`` and so on, and are deleted together with it; on local disks only.

    Validation: the other nets are reported as ``net1/<metric>`` and so on; for classifiers and segmentors the ensemble,
    the mean of the nets' class probabilities, as ``ensemble/<metric>``. Before the first iteration it rehearses the
    first batch, as :class:`~lckd_mm.hooks.DistillationHook` does. ``tools/train.py`` adds this hook.

    Raises:
        ValueError: resuming from a file of other nets or of a plain run; several ranks and optimizers without
            :class:`~lckd_mm.distillation.online_optim.OnlineDataParallel`.
    Example: ``default_hooks = dict(distillation=dict(type='lckd_mm.OnlineHook'))``
    """

    # Its metrics must exist before the logger hook runs.
    priority = 'HIGHEST'

    def __init__(self):
        self._evaluators: dict[str, Any] = {}
        self._files = _NetFiles()

    @staticmethod
    def _model(runner) -> OnlineDistiller:
        return distiller_of(runner, 'OnlineHook', OnlineDistiller)

    def before_run(self, runner) -> None:
        install()
        self._model(runner).state_is_stored = True
        if self._files not in runner.hooks:
            runner.register_hook(self._files, priority='LOWEST')

    def before_train(self, runner) -> None:
        RehearsalHook.add_to(runner)
        if not isinstance(runner.optim_wrapper, OptimWrapperDict):
            return
        if is_distributed() and not isinstance(runner.model, OnlineDataParallel):
            raise ValueError(
                'OnlineHook: several optimizers on several ranks need model_wrapper_cfg=dict(type='
                f"'lckd_mm.OnlineDataParallel'), as tools/train.py sets it, got {type(runner.model).__name__}"
            )
        for wrapper in runner.optim_wrapper.values():
            wrapper.initialize_count_status(runner.model, runner.iter, runner.max_iters)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        add_state(checkpoint, version=1, **self._model(runner).distillation_state())
        self._files.pending = True

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if resumed_state(runner, checkpoint, 'nets', 'OnlineHook') is not None:
            self._model(runner).load_distillation_state(checkpoint[STATE_KEY])

    def before_val_epoch(self, runner) -> None:
        model = self._model(runner)
        names = [f'net{k}' for k in range(1, len(model.nets))]
        if host_of(model.student) in _ENSEMBLES:
            names.append('ensemble')
        self._evaluators = {name: copy.deepcopy(runner.val_loop.evaluator) for name in names}

    def after_val_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        model = self._model(runner)
        # Copy the batch: hosts write predictions into its samples, which are also net 0's outputs.
        predictions = [list(outputs), *(net.val_step(copy.deepcopy(data_batch)) for net in model.peers)]
        for k, of_net in enumerate(predictions[1:], 1):
            self._evaluators[f'net{k}'].process(data_samples=of_net, data_batch=data_batch)
        if 'ensemble' in self._evaluators:
            mean = _ENSEMBLES[host_of(model.student)]
            joint = [mean(samples, model.student) for samples in zip(*predictions, strict=True)]
            self._evaluators['ensemble'].process(data_samples=joint, data_batch=data_batch)

    def after_val_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        size = len(runner.val_loop.dataloader.dataset)
        for name, evaluator in self._evaluators.items():
            found = {f'{name}/{key}': value for key, value in evaluator.evaluate(size).items()}
            if metrics is not None:
                metrics.update(found)
        self._evaluators = {}


class _NetFiles(Hook):
    """Keeps a plain file of each other net beside each checkpoint. Runs last, when the checkpoint has been written."""

    def __init__(self):
        self.pending = False
        self._known: set[Path] = set()

    @master_only
    def before_train(self, runner) -> None:
        # Include the resumed run's files, so that they too are deleted with their checkpoint.
        self._known |= {file for file in _checkpoints(runner) if _plain_files(file)}

    @master_only
    def _follow(self, runner, *_: Any, **__: Any) -> None:
        if not self.pending:
            return
        self.pending = False
        for file in _checkpoints(runner):
            plain = _plain_files(file)
            if not plain or any(p.stat().st_mtime_ns < file.stat().st_mtime_ns for p in plain):
                stored = read_checkpoint(str(file), 'OnlineHook')
                for k, state in enumerate(stored_state(stored, 'nets') or (), 1):
                    save_whole(dict(meta=stored['meta'], state_dict=state), file.with_name(f'{file.stem}.net{k}.pth'))
                    self._known.add(file)
        for file in [f for f in self._known if not f.exists()]:
            self._known.discard(file)
            for plain in _plain_files(file):
                plain.unlink()

    after_train_iter = after_train_epoch = after_val_epoch = _follow


def _plain_files(file: Path) -> list[Path]:
    return [f for f in file.parent.glob('*.net*.pth') if re.fullmatch(re.escape(file.stem) + r'\.net\d+', f.stem)]


def _checkpoints(runner) -> list[Path]:
    folders = {Path(hook.out_dir) for hook in runner.hooks if isinstance(hook, CheckpointHook)}
    return [f for folder in folders for f in folder.glob('*.pth') if not re.search(r'\.net\d+$', f.stem)]


def _classifiers(samples: tuple, model: BaseModel) -> Any:
    """For one image: the mean of the nets' scores (softmax or sigmoid), and its top class."""
    joint = samples[0].clone()
    score = torch.stack([sample.pred_score for sample in samples]).mean(0)
    joint.set_pred_score(score)
    if samples[0].pred_label.numel() == 1:
        joint.set_pred_label(score.argmax(0, keepdim=True))
    return joint


def _segmentors(samples: tuple, model: BaseModel) -> Any:
    """For one image: the top class per pixel of the nets' mean class probabilities."""
    joint = samples[0].clone()
    scores = torch.stack([sample.seg_logits.data for sample in samples])
    if scores.shape[1] == 1:  # binary segmentation: the host returns the sigmoid
        labels = scores.mean(0) > model.decode_head.threshold
    else:
        labels = scores.softmax(1).mean(0).argmax(0, keepdim=True)
    joint.pred_sem_seg = PixelData(data=labels.to(samples[0].pred_sem_seg.data.dtype))
    return joint


_ENSEMBLES = {'mmpretrain': _classifiers, 'mmseg': _segmentors}
