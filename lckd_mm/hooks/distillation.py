"""DistillationHook: connectors in checkpoints, and training images for those that wait for them."""

import copy
from collections.abc import Iterator
from itertools import count, islice
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import MMDistributedDataParallel, is_model_wrapper
from torch import Tensor

from ..checkpoint import STATE_KEY
from ..distiller import Distiller
from ..hosts import preserved_rng
from ..registry import HOOKS


def distiller_of(runner: Any, who: str) -> Distiller:
    """The runner's Distiller, without its wrapper; TypeError where the model is something else."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    if not isinstance(model, Distiller):
        raise TypeError(f'{who}: the model is a {type(model).__name__}, not an lckd_mm.Distiller; take the hook away')
    return model


@HOOKS.register_module()
class DistillationHook(Hook):
    """Stores connectors and losses' buffers beside the student in every checkpoint, and brings them back on resume.

    They stand under the key ``lckd_mm`` of the file; ``state_dict`` is the student's alone. ``load_from`` takes the
    student and leaves the connectors as they are. Before the first iteration it also fills what a connector estimates
    from training images (:class:`~lckd_mm.connectors.MarginReLU`). ``tools/train.py`` adds this hook by itself.

    Raises:
        ValueError: on resuming from a file without connectors there (a plain run's), or with others.
    """

    priority = 'VERY_HIGH'

    def before_run(self, runner) -> None:
        distiller_of(runner, 'DistillationHook').state_is_stored = True
        if is_model_wrapper(runner.model) and not isinstance(runner.model, MMDistributedDataParallel):
            raise TypeError(
                f'DistillationHook: {type(runner.model).__name__} shards or splits the model, and a Distiller taps the '
                'features and stores the weights of a whole student; train with MMDistributedDataParallel'
            )

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        model = distiller_of(runner, 'DistillationHook')
        checkpoint.setdefault(STATE_KEY, {}).update(version=1, terms=model.distillation_state())

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if not getattr(runner, '_resume', False):
            return
        if 'terms' not in (checkpoint.get(STATE_KEY) or {}):
            raise ValueError(
                f'resume: the checkpoint has no {STATE_KEY!r} key with terms, so it is of a plain run and not of this '
                'distillation; start from it with load_from instead of resuming'
            )
        distiller_of(runner, 'DistillationHook').load_distillation_state(checkpoint[STATE_KEY]['terms'])

    @torch.no_grad()
    def before_train(self, runner) -> None:
        """Show training images to the connectors that wait for them: margins without BatchNorm, paraphrasers."""
        model = distiller_of(runner, 'DistillationHook')
        if runner._load_from and not runner._resume:
            # A whole student has just been written over what it had of the teacher.
            model.take_over()
        waiting = [pair for term in model.terms.values() for pair in term.waiting()]
        if not waiting:
            return
        loader_cfg = copy.deepcopy(runner.cfg.get('train_dataloader'))
        if not isinstance(loader_cfg, dict):
            raise ValueError(
                f'DistillationHook: a {type(waiting[0][1]).__name__} at {waiting[0][0]!r} needs training images, and '
                'the runner has no train_dataloader in its config to read them from; build it from a config'
            )
        for key in ('prefetch_factor', 'timeout', 'multiprocessing_context'):
            loader_cfg.pop(key, None)  # of worker processes
        loader_cfg.update(num_workers=0, persistent_workers=False)
        with preserved_rng():
            # A loader of its own: the run's own sampler would go on from where this one stops.
            # Its ranks share one order of the images, also where each has a seed of its own.
            seeds = runner.cfg.get('randomness') or {}
            loader = runner.build_dataloader(loader_cfg, runner.seed, seeds.get('diff_rank_seed', False))
            batches = max(connector.batches for _, connector in waiting)
            for i, batch in enumerate(islice(_again_and_again(loader), batches)):
                left = [(tap, connector) for tap, connector in waiting if i < connector.batches]
                data = model.data_preprocessor(batch, True)
                names = list(dict.fromkeys(tap for tap, _ in left))
                features = model.teacher(model.teacher_taps, names, data['inputs'], data['data_samples'])
                for tap, connector in left:
                    for level in [features[tap]] if isinstance(features[tap], Tensor) else features[tap]:
                        connector.observe(level)
        for tap, connector in waiting:
            runner.logger.info(f'{type(connector).__name__} at {tap!r}: {connector.settle()}')


def _again_and_again(loader: Any) -> Iterator:
    """Its batches, epoch after epoch."""
    for epoch in count():
        if hasattr(loader.sampler, 'set_epoch'):
            loader.sampler.set_epoch(epoch)
        batch = None
        for batch in loader:
            yield batch
        if batch is None:
            raise ValueError(
                'DistillationHook: the train_dataloader gives no batch, and a connector needs training images; make '
                'batch_size smaller than the data set, or drop_last=False'
            )
