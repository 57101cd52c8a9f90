"""COCO's annotations of objects that are numbered in a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy.ndimage import find_objects


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths: of 0 and 1 by turns, down the columns, beginning with 0."""
    flat = np.concatenate([[False], mask.flatten(order='F')])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff([0, *changes, flat.size - 1]).tolist()


def instances_of(instances: np.ndarray, categories: Sequence[int]) -> Iterator[dict[str, Any]]:
    """COCO's annotation of each object, without ids.

    Args:
        instances: ``(H, W)``, 0 where there is none, else the number of the object, from 1.
        categories: of the objects, in the order of their numbers.
    """
    height, width = instances.shape
    for number, (rows, columns) in enumerate(find_objects(instances), 1):
        mask = np.zeros_like(instances, bool)
        mask[rows, columns] = instances[rows, columns] == number
        box = [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
        yield dict(
            category_id=int(categories[number - 1]),
            bbox=box,
            area=int(mask[rows, columns].sum()),
            iscrowd=0,
            segmentation=dict(size=[height, width], counts=run_lengths(mask)),
        )
