"""UnlabelledHook: a second stream of images, without annotations, beside the labelled one."""

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.dataset import pseudo_collate
from mmengine.dist import broadcast, get_rank, get_world_size
from mmengine.hooks import Hook
from torch.utils.data import DataLoader, Dataset

from .. import arguments
from ..contexts import preserved_rng, seeded
from ..registry import DATASETS, HOOKS
from .distillation import distiller_of


@HOOKS.register_module()
class UnlabelledHook(Hook):
    """Gives the terms with ``images='unlabelled'`` a batch of images of its own in each iteration.

    The images of an iteration, and their augmentation, follow from the run's seed, the iteration and the rank alone. So
    a resumed run is the same to the bit, with any number of worker processes, and the random numbers of the labelled
    images are those of the training without it.

    Args:
        dataset: config of a data set whose pipeline packs images as the student's does, without annotations, such as
            :class:`~lckd_mm.data.Images`; annotations that it has are not used.
        batch_size: of each rank. num_workers: of the loader.
    Raises:
        ValueError: no term has ``images='unlabelled'``, or the data set is empty.
    Example: ``custom_hooks = [dict(type='lckd_mm.UnlabelledHook', dataset=dict(type='lckd_mm.Images'), batch_size=8)]``
    """

    def __init__(self, dataset: dict, batch_size: int, num_workers: int = 0):
        self.dataset = dataset
        self.batch_size = arguments.integer('UnlabelledHook', 'batch_size', batch_size)
        self.num_workers = arguments.integer('UnlabelledHook', 'num_workers', num_workers, at_least=0)
        self._batches: Iterator = iter(())

    def before_train(self, runner) -> None:
        model = distiller_of(runner, 'UnlabelledHook')
        if not any(term.unlabelled for term in model.terms.values()):
            raise ValueError("UnlabelledHook: no term reads its images; write images='unlabelled' in one, or remove it")
        # It may draw random numbers, as a subset does.
        with preserved_rng():
            dataset = DATASETS.build(self.dataset)
        if not len(dataset):
            raise ValueError('UnlabelledHook: its data set is empty')
        # Ranks may have seeds of their own, and share one stream.
        seed = torch.tensor(runner.seed)
        broadcast(seed)
        order = _Order(len(dataset), self.batch_size, seed.item(), runner.iter, runner.max_iters)
        loader = DataLoader(
            _Seeded(dataset, seed.item()), batch_sampler=order, num_workers=self.num_workers, collate_fn=pseudo_collate
        )
        with preserved_rng():  # the loader draws a seed for its workers
            self._batches = iter(loader)

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        distiller_of(runner, 'UnlabelledHook').unlabelled = next(self._batches)

    def after_train(self, runner) -> None:
        distiller_of(runner, 'UnlabelledHook').unlabelled = None
        self._batches = iter(())  # ends the workers


class _Order:
    """The batches of this rank from an iteration on, each a list of (place in the stream, index in the data set).

    The stream of all ranks is one permutation of the data set after another.
    """

    def __init__(self, count: int, batch_size: int, seed: int, first: int, last: int):
        self.count, self.batch_size, self.seed, self.iterations = count, batch_size, seed, range(first, last)

    def __len__(self) -> int:
        return len(self.iterations)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rank, world, kept = get_rank(), get_world_size(), {}
        for iteration in self.iterations:
            start = (iteration * world + rank) * self.batch_size
            batch = []
            for place in range(start, start + self.batch_size):
                epoch, at = divmod(place, self.count)
                if epoch not in kept:
                    generator = torch.Generator().manual_seed((self.seed + epoch) % 2**63)
                    kept = {e: order for e, order in kept.items() if e == epoch - 1}
                    kept[epoch] = torch.randperm(self.count, generator=generator).tolist()
                batch.append((place, kept[epoch][at]))
            yield batch


class _Seeded(Dataset):
    """A data set whose augmentation follows from a seed and the place in the stream."""

    def __init__(self, dataset: Any, seed: int):
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, key: tuple[int, int]) -> Any:
        place, index = key
        # Apart from the seed of the order.
        with seeded((self.seed * 1_000_003 + 7919 * place + 1) % 2**32):
            return self.dataset[index]
