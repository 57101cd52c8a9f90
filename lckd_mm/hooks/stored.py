"""Outputs of teachers that are stored: what happens before the first iteration."""

import shutil
import time
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from torch import Tensor
from torch.utils.data import DataLoader

from ..contexts import preserved_rng, seeded
from ..data.replayed import Replayed
from ..distillation import Distiller, StoredTeacher
from ..distillation.teachers import named_in_errors
from ..errors import one_line

#: How many images are loaded how often, to see whether they are the same each time.
_IMAGES, _TIMES = 8, 4
_SECONDS = 60


@torch.no_grad()
def open_stored(runner: Any, model: Distiller) -> None:
    """Open the stored outputs of all teachers, and store what is missing, on all ranks together.

    Raises:
        ValueError: the images of training are other ones each time, have several sizes, or are not those that are
        stored; or the stored outputs are of another teacher.
    """
    stored = {name: one for name, one in model.teachers.items() if isinstance(one.teacher, StoredTeacher)}
    if not stored:
        return
    images = _Images(runner.train_dataloader, model.data_preprocessor)
    # In the precision of training; a hook that only fits connectors has built no wrapper.
    wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    with preserved_rng(), wrapper.optim_context(model):
        images.check_repeat()
        for name, one in stored.items():
            with named_in_errors(name):
                device = next(model.parameters()).device
                # Another run may be about to complete the folder, and all ranks have to see the same.
                if not all(all_gather_object(one.teacher.open(one.taps, model.terms.used(name)[1], device))):
                    _store(runner, one, images)
                for i in images.chosen:
                    one.teacher.check(*images.batch([images.dataset[i]]))
                runner.logger.info(f'teacher: its outputs are read from {one.teacher.folder}; it does not run')


class _Images:
    """The images of training, as the student sees them."""

    def __init__(self, loader: DataLoader, preprocessor: Any):
        self.loader, self.dataset, self.preprocessor = loader, loader.dataset, preprocessor
        count = len(self.dataset)
        self.several = getattr(loader.batch_sampler, 'batch_size', 1) > 1
        self.size = min(loader.batch_sampler.batch_size, count) if self.several else 1
        #: Some of them, over all of the data set.
        self.chosen = sorted({round(i * (count - 1) / (_IMAGES - 1)) for i in range(_IMAGES)})

    def batch(self, samples: list) -> tuple[Tensor, list | None]:
        data = self.preprocessor(self.loader.collate_fn(samples), True)
        return data['inputs'], data['data_samples']

    def check_repeat(self) -> None:
        """Raise ValueError if an image is not the same each time that it is loaded."""
        if all(self._repeats(self.chosen[at : at + self.size]) for at in range(0, len(self.chosen), self.size)):
            return
        if isinstance(self.dataset, Replayed):
            way = (
                'a step draws random numbers of its own, or the data_preprocessor mixes images or draws their size; '
                'remove it'
            )
        else:
            way = (
                'take its random steps out, also those of the data_preprocessor, or replay them: dataset=dict('
                "type='lckd_mm.Replayed', dataset=dict(…), variants=8)"
            )
        raise ValueError(
            'teacher: its outputs cannot be stored, since an image of the train_dataloader is another one each time '
            f'that it is loaded; {way}'
        )

    def _repeats(self, chosen: list[int]) -> bool:
        seen = []
        for visit in range(_TIMES):
            with seeded(_TIMES * chosen[0] + visit):
                seen.append(self.batch([self.dataset[i] for i in chosen])[0])
        return all(x.shape == seen[0].shape and torch.equal(x, seen[0]) for x in seen)

    def batches(self) -> Iterator[tuple[Tensor, list | None]]:
        """All images of this rank, in batches of the training's size; the last one begins again.

        Raises:
            ValueError: they have several sizes, so that others stand beside an image in a batch of training.
        """
        own = list(range(get_rank(), len(self.dataset), get_world_size()))
        own += own[: -len(own) % self.size]
        loader = DataLoader(
            self.dataset, self.size, sampler=own, num_workers=self.loader.num_workers, collate_fn=list,
            worker_init_fn=self.loader.worker_init_fn,
        )  # fmt: skip
        size = self.batch([self.dataset[0]])[0].shape[2:]
        for samples in loader:
            alone = [self.batch([sample]) for sample in samples]
            for inputs, _ in alone:
                if inputs.shape[2:] != size and self.several:
                    found = ' and '.join(' x '.join(map(str, of)) for of in (size, inputs.shape[2:]))
                    raise ValueError(
                        f'teacher: its outputs cannot be stored, since the images have several sizes, such as {found}, '
                        'and each is padded to the largest of its batch; pad all to one size, as '
                        "dict(type='Pad', size=(WIDTH, HEIGHT)) at the end of the pipeline does, or write batch_size=1"
                    )
            samples = [one for _, samples in alone for one in samples or ()]
            yield torch.cat([inputs for inputs, _ in alone]), samples or None


def _store(runner: Any, one: Any, images: _Images) -> None:
    """Store all images, each rank its own; the manifest at last."""
    folder, count = one.teacher.folder, len(images.dataset)
    runner.logger.info(f'teacher: its outputs for {count} images are stored in {folder} before the first iteration')
    problem, sizes, seen, start = None, [], 0, time.time()
    told = start
    try:
        for inputs, samples in images.batches():
            first, seen = not sizes, seen + len(inputs) * get_world_size()
            sizes += one.teacher.write(one.taps, inputs, samples)
            if first and sizes:
                needed, free = max(sizes) * (count - seen), shutil.disk_usage(folder.folder).free
                if needed > free:
                    raise ValueError(
                        f'teacher: its outputs need {needed / 1e9:.3g} GB in {folder}, where {free / 1e9:.3g} are '
                        'free; make room, or write stored=dict(folder=…, half=True)'
                    )
            if time.time() > told + _SECONDS:
                told = time.time()
                runner.logger.info(f'teacher: {min(seen, count)} of {count} images stored')
    except (ValueError, OSError) as error:
        problem = error
    # Else the other ranks would wait for this one.
    texts = all_gather_object(problem and one_line(problem))
    if any(texts):
        raise problem or ValueError(next(filter(None, texts)))
    if get_rank() == 0:
        folder.finish(one.teacher.description)
    runner.logger.info(
        f'teacher: stored {len(sizes)} images{" on this rank" * (get_world_size() > 1)}, {sum(sizes) / 1e6:.4g} MB, in '
        f'{time.time() - start:.0f} s'
    )
