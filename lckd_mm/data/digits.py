"""scikit-learn's scanned handwritten digits as a classification data set."""

import cv2
import numpy as np
from mmengine.dataset import BaseDataset

from .. import arguments
from ..registry import DATASETS

_SPLITS = {'train': slice(0, 898), 'test': slice(898, None)}


@DATASETS.register_module()
class Digits(BaseDataset):
    """The 1,797 scans that scikit-learn ships: the first 898 for training, the last 899 for testing.

    The scans seem to be in order of their writers, so the two halves come close to a split by writer. Each scan is
    resized (bilinear) and repeated to three equal channels, 0 to 255.

    Args:
        split: 'train' or 'test'. size: height and width of the images.
        subset: number of scans to use, chosen at random with ``subset_seed``; None uses all.
        label_noise: fraction of the labels to replace by another digit, also with ``subset_seed``.
    Raises:
        ValueError: unknown split, a subset larger than the split, a fraction outside 0 to 1.
    Example:
        dataset=dict(
            type='lckd_mm.Digits', split='train', subset=300, pipeline=[dict(type='PackInputs')]
        )
    Source: the test set of UCI's Optical Recognition of Handwritten Digits (13 writers).
    """

    METAINFO = dict(classes=tuple(str(i) for i in range(10)))

    def __init__(
        self,
        split: str,
        size: int = 16,
        subset: int | None = None,
        label_noise: float = 0.0,
        subset_seed: int = 0,
        **kwargs,
    ):
        arguments.choice('Digits', 'split', split, _SPLITS)
        arguments.number('Digits', 'label_noise', label_noise, at_least=0, at_most=1)
        arguments.integer('Digits', 'size', size, at_most=4096)
        arguments.integer('Digits', 'subset_seed', subset_seed, at_least=0)
        if subset is not None:
            arguments.integer('Digits', 'subset', subset)
        self.split, self.size, self.subset = split, size, subset
        self.label_noise, self.subset_seed = label_noise, subset_seed
        super().__init__(ann_file='', **kwargs)

    def load_data_list(self) -> list[dict]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images, labels = digits.images[_SPLITS[self.split]], digits.target[_SPLITS[self.split]].copy()
        rng = np.random.default_rng(self.subset_seed)
        chosen = np.arange(len(labels))
        if self.subset is not None:
            if not 0 < self.subset <= len(labels):
                raise ValueError(f'Digits: subset must be 1 to {len(labels)} scans, got {self.subset}')
            chosen = np.sort(rng.permutation(len(labels))[: self.subset])
        wrong = chosen[rng.permutation(len(chosen))[: round(self.label_noise * len(chosen))]]
        labels[wrong] = (labels[wrong] + rng.integers(1, 10, len(wrong))) % 10
        return [dict(img=self._image(images[i]), gt_label=int(labels[i]), scan_id=int(i)) for i in chosen]

    def _image(self, scan: np.ndarray) -> np.ndarray:
        grey = cv2.resize((scan * (255 / 16)).astype(np.float32), (self.size, self.size))
        return np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=2)
