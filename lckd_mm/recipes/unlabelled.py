"""Images without labels beside the student's own: the hook that loads them, made of the student's config."""

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dataset import Compose

from ..config import type_name
from ..contexts import seeded
from ..data.images import Images
from ..errors import one_line

#: How often a step is tried: some do nothing at random.
_TIMES = 8


def unlabelled_hook(cfg: Config, folder: str) -> tuple[dict, list[str]]:
    """The config of a :class:`~lckd_mm.hooks.UnlabelledHook` for the images of a folder, and what it leaves out.

    Their pipeline is that of the student's training without the steps that need annotations: each is tried on the first
    image.

    Raises:
        FileNotFoundError: no such folder, or no image in it. ValueError: the student's pipeline reads no files, or
            packs no image without annotations.
    """
    by_hand = 'write the UnlabelledHook into the config instead (docs/teachers.md, "Images without labels")'
    loader = cfg.train_dataloader
    results: Any = Images(folder).get_data_info(0)
    kept, left = [], []
    for step in _pipeline(loader['dataset']):
        if re.match('Load.*Annotations', type_name(step['type'])):
            continue
        # mmseg's crop looks at the labels for how much of it one class takes.
        step = step | dict(cat_max_ratio=1.0) if 'cat_max_ratio' in step else step
        made, problem = _made(step, results)
        if problem is None:
            kept.append(step)
            results = made
        else:
            left.append(f'{type_name(step["type"])} is left out for images without labels ({problem})')
        if 'img' not in results and 'inputs' not in results:
            raise ValueError(
                f'--unlabelled: {type_name(step["type"])}, the first step of the training pipeline, does not load '
                f'{results["img_path"]!r}: {problem or "it gives no image"}; {by_hand}'
            )
    if 'inputs' not in results:
        why = f' ({"; ".join(left)})' if left else ''
        raise ValueError(f'--unlabelled: the training pipeline packs no image without annotations{why}; {by_hand}')
    dataset = dict(type='lckd_mm.Images', folder=str(Path(folder).expanduser().absolute()), pipeline=kept)
    sizes = dict(batch_size=loader.get('batch_size', 1), num_workers=loader.get('num_workers', 0))
    return dict(type='lckd_mm.UnlabelledHook', **sizes, dataset=dataset), left


def _pipeline(dataset: Mapping) -> list[dict]:
    """The steps of a data set, those of what it wraps first."""
    inner = dataset.get('dataset') or next(iter(dataset.get('datasets') or ()), None)
    own = [dict(step) for step in dataset.get('pipeline') or ()]
    return (_pipeline(inner) if inner else []) + own


def _made(step: Mapping, results: dict) -> tuple[dict, str | None]:
    """What a step makes of an image without annotations, and why it makes nothing."""
    try:
        transform = Compose([copy.deepcopy(step)])
        for seed in range(_TIMES):
            with seeded(seed):
                made = transform(copy.deepcopy(results))
            if made is None:
                return results, 'it drops images without annotations'
    except Exception as error:  # a host may raise anything
        return results, one_line(error)
    return made, None
