"""DistillationHook: stores connectors in checkpoints, and fits those that need training images."""

import copy
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.model import MMDistributedDataParallel, is_model_wrapper
from torch import Tensor

from ..config import student_config
from ..contexts import preserved_rng
from ..distillation import Distiller, Term
from ..distillation.side import levels
from ..distillation.term import Waiting
from ..errors import one_line
from ..hosts import class_names, unwrapped
from ..registry import HOOKS
from ..storage.checkpoint import add_state, resumed_state, stored_state, student_alone
from ..storage.files import install, last_checkpoint, near, read_checkpoint, save_whole
from .rehearsal import RehearsalHook
from .stored import open_stored


def distiller_of(runner: Any, who: str, kind: type = Distiller) -> Any:
    """The runner's Distiller (or another ``kind``), without its wrapper; TypeError if the model is another."""
    model = unwrapped(runner.model)
    if not isinstance(model, kind):
        raise TypeError(
            f'{who}: the model is a {type(model).__name__}, not an lckd_mm.{kind.__name__}; remove the hook'
        )
    return model


def terms_of(runner: Any, who: str) -> dict[str, list[Term]]:
    """Term name to its terms, for any model that has terms; TypeError for others."""
    model = unwrapped(runner.model)
    if not hasattr(model, 'named_terms'):
        raise TypeError(f'{who}: the model is a {type(model).__name__}, which has no terms; remove the hook')
    return model.named_terms()


def best_or_last(runner: Any) -> str | None:
    """The file of the best checkpoint of a run, or else of the last one; None if there is none."""
    best = [runner.message_hub.get_info(key) for key in runner.message_hub.runtime_info if 'best_ckpt' in key]
    last = last_checkpoint(runner.work_dir)
    return next((str(path) for path in (*best, last) if path and Path(path).is_file()), None)


@HOOKS.register_module()
class DistillationHook(Hook):
    """Stores connectors and losses' buffers beside the student in every checkpoint, and restores them on resume.

    They are stored under the file's key ``lckd_mm``; ``state_dict`` holds only the student. ``load_from`` loads the
    student alone. Before the first iteration the hook also fits the connectors that need training images
    (:class:`~lckd_mm.connectors.MarginReLU`, :class:`~lckd_mm.connectors.AutoEncoder`), and rehearses the first batch:
    it is run with all losses and terms, where and as training runs, on a copy of the student's state, so that what does
    not fit ends the run before anything is updated (:mod:`lckd_mm.hooks.rehearsal`). Outputs of a teacher that are to
    be stored (:class:`~lckd_mm.distillation.StoredTeacher`) are stored or checked. It also compares the names of
    both nets' classes where a term compares class scores. After the last iteration it writes ``student.pth``: the
    student's weights alone, of the best checkpoint or else of the last one. ``tools/train.py`` adds the hook.

    Args:
        fitted: a file from which these connectors are loaded instead, by the names of their terms: written by
            ``tools/fit_connectors.py``, or any checkpoint of a distillation that had them.
    Raises:
        FileNotFoundError: no such file. ValueError: resuming from a file without connectors or with other ones;
            ``fitted`` does not hold the connectors; the teacher's classes are others, or in another order, and the term
            does not say how to match them.
    Example: ``default_hooks = dict(distillation=dict(type='lckd_mm.DistillationHook', fitted='fitted.pth'))``
    """

    priority = 'VERY_HIGH'

    def __init__(self, fitted: str | None = None):
        self.fitted = fitted

    def before_run(self, runner) -> None:
        install()
        distiller_of(runner, 'DistillationHook').state_is_stored = True
        if is_model_wrapper(runner.model) and not isinstance(runner.model, MMDistributedDataParallel):
            raise TypeError(
                f'DistillationHook: {type(runner.model).__name__} splits the model, and a Distiller needs the whole '
                'student; train with MMDistributedDataParallel'
            )

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        model = distiller_of(runner, 'DistillationHook')
        add_state(checkpoint, version=1, terms=model.distillation_state())

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        state = resumed_state(runner, checkpoint, 'terms', 'DistillationHook')
        if state is not None:
            distiller_of(runner, 'DistillationHook').load_distillation_state(state)

    @torch.no_grad()
    def before_train(self, runner) -> None:
        model = distiller_of(runner, 'DistillationHook')
        if runner._load_from and not runner._resume:
            # load_from has just overwritten the weights that the student inherited from the teacher.
            model.copy_teacher_weights()
        model.follow_average(runner.hooks)
        model.complete()
        model.match_classes(class_names(getattr(runner.train_dataloader.dataset, 'metainfo', None)))
        open_stored(runner, model)
        RehearsalHook.add_to(runner)
        waiting = _waiting(model)
        if waiting:
            (self._show_images if self.fitted is None else self._load_fitted)(runner, model, waiting)

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None) -> None:
        """Log each term's share of the loss, as ``share_<method>``."""
        for name in distiller_of(runner, 'DistillationHook').terms if outputs and outputs.get('loss') else ():
            share = outputs[name] / outputs['loss']
            runner.message_hub.update_scalar(f'train/share_{name.removeprefix("loss_")}', share)

    @master_only
    def after_train(self, runner) -> None:
        """Write the student alone, of the best checkpoint or else of the last one, to ``student.pth``."""
        source = best_or_last(runner)
        if source is None:
            return
        out = Path(runner.work_dir, 'student.pth')
        # A Runner that is built from objects has no config.
        config = student_config(runner.cfg).pretty_text if runner.cfg.get('model') else ''
        save_whole(student_alone(source, config, 'student.pth'), out)
        runner.logger.info(
            f"{near(out)} is the student alone, of {Path(source).name}; its host's tools load it with its own config"
        )

    def fit(self, runner) -> dict[str, Tensor]:
        """Load the teacher, fit the connectors that need training images, and return their state by key."""
        self.before_run(runner)
        model = distiller_of(runner, 'DistillationHook')
        model.init_weights()
        names = tuple(f'{name}.' for name in _waiting(model))
        if not names:
            raise ValueError('DistillationHook: no connector of this config needs training images: nothing to fit')
        self.before_train(runner)
        return {key: value for key, value in model.distillation_state().items() if key.startswith(names)}

    def _load_fitted(self, runner, model: Distiller, waiting: dict[str, Waiting]) -> None:
        who = f'DistillationHook: fitted={self.fitted!r}'
        stored = stored_state(read_checkpoint(self.fitted, 'DistillationHook: fitted'), 'terms') or {}
        for name, (tap, connector, _) in waiting.items():
            state = {k.removeprefix(f'{name}.'): v for k, v in stored.items() if k.startswith(f'{name}.')}
            try:
                connector.load_state_dict(state)
            except RuntimeError as error:
                raise ValueError(
                    f'{who} does not fit {name!r} ({one_line(error)}); write it with tools/fit_connectors.py and this '
                    'config, or remove fitted'
                ) from error
            if connector.waits_for_data:
                raise ValueError(f'{who} holds {name!r} without a fit to training images')
            runner.logger.info(f'{type(connector).__name__} at {tap!r}: loaded from {self.fitted}')

    def _show_images(self, runner, model: Distiller, waiting: dict[str, Waiting]) -> None:
        loader_cfg = copy.deepcopy(runner.cfg.train_dataloader)
        for key in ('prefetch_factor', 'timeout', 'multiprocessing_context'):
            loader_cfg.pop(key, None)  # options of worker processes
        loader_cfg.update(num_workers=0, persistent_workers=False)
        found = list(waiting.values())
        with preserved_rng():
            # A separate loader: the run's own sampler would continue where this one stops. All ranks share one order of
            # the images, even if each has its own seed.
            seeds = runner.cfg.get('randomness') or {}
            loader = runner.build_dataloader(loader_cfg, runner.seed, seeds.get('diff_rank_seed', False))
            batches = max(one.connector.batches for one in found)
            kinds = ', '.join(f'{type(one.connector).__name__} at {one.tap!r}' for one in found)
            runner.logger.info(f'{kinds}: shown {batches} batches of training images before the first iteration')
            for i, batch in enumerate(islice(_repeated(loader), batches)):
                show_batch(model, [one for one in found if i < one.connector.batches], batch)
        for tap, connector, _ in found:
            runner.logger.info(f'{type(connector).__name__} at {tap!r}: {connector.finish_fitting()}')


@torch.no_grad()
def show_batch(model: Distiller, waiting: list[Waiting], batch: dict) -> None:
    """Pass the teachers' features of one batch to the waiting connectors."""
    data = model.data_preprocessor(batch, True)
    for name, one in model.teachers.items():
        own = [found for found in waiting if found.of == name]
        names = list(dict.fromkeys(found.tap for found in own))
        features = one.teacher(one.taps, names, data['inputs'], data['data_samples']) if names else {}
        for found in own:
            for level in levels(features[found.tap]):
                found.connector.observe(level)


def _waiting(model: Distiller) -> dict[str, Waiting]:
    """The connectors that need training images, by their names in the state dict."""
    names = {module: name for name, module in model.terms.named_modules()}
    return {names[one.connector]: one for term in model.terms.values() for one in term.waiting()}


def _repeated(loader: Any) -> Iterator:
    """The loader's batches, epoch after epoch."""
    if len(loader) == 0:
        raise ValueError('DistillationHook: the train_dataloader gives no batch; make its batch_size smaller')
    for epoch in count():
        if hasattr(loader.sampler, 'set_epoch'):
            loader.sampler.set_epoch(epoch)
        yield from loader
