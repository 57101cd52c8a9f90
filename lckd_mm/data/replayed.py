"""A fixed number of augmentations of each image, the same in each run."""

from typing import Any

import numpy as np

from .. import arguments
from ..contexts import seeded
from ..registry import DATASETS


@DATASETS.register_module()
class Replayed:
    """A data set whose random augmentation is one of ``variants`` for each image, the same in each run.

    Item v N + i is image i of N in its variant v: the random numbers of Python, numpy and torch start from a state that
    follows from ``seed``, i and v, and go on afterwards as before. So the data set is ``variants`` times as long, an
    epoch is as many visits of each image, and any sampler and number of worker processes works. It is made for outputs
    of a teacher that are stored (:class:`~lckd_mm.distillation.StoredTeacher`).

    A step that draws random numbers of its own is not replayed, and where outputs are stored it is refused. A mix of
    several images (mmdet's ``MultiImageMixDataset``) goes inside: outside it would draw anew.

    Args:
        dataset: the config of a data set of any host. variants: of each image. seed: of their random states.
    Raises:
        ValueError: ``variants`` is not a positive integer, or ``seed`` is negative.
    Example:
        dataset=dict(
            type='lckd_mm.Replayed',
            variants=8,
            dataset=dict(type='mmseg.CityscapesDataset', data_root='data/cityscapes'),
        )
    """

    def __init__(self, dataset: dict, variants: int, seed: int = 0, lazy_init: bool = False):
        self.variants = arguments.integer('Replayed', 'variants', variants)
        self.seed = arguments.integer('Replayed', 'seed', seed, at_least=0)
        self.dataset = DATASETS.build(dataset)
        if not lazy_init:
            self.full_init()

    def full_init(self) -> None:
        if hasattr(self.dataset, 'full_init'):
            self.dataset.full_init()

    @property
    def metainfo(self) -> dict:
        return self.dataset.metainfo

    def get_data_info(self, idx: int) -> dict:
        return self.dataset.get_data_info(idx % len(self.dataset))

    def get_cat_ids(self, idx: int) -> list[int]:
        return self.dataset.get_cat_ids(idx % len(self.dataset))

    def __len__(self) -> int:
        return self.variants * len(self.dataset)

    def __getitem__(self, idx: int) -> Any:
        if not 0 <= idx < len(self):
            raise IndexError(f'Replayed: no item {idx} of {len(self)}')
        variant, image = divmod(int(idx), len(self.dataset))
        with seeded(int(np.random.SeedSequence([self.seed, image, variant]).generate_state(1)[0])):
            return self.dataset[image]
