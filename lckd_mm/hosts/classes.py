"""Names of classes: of a data set, in a checkpoint's meta, and in a config."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.registry import DATASETS

from .models import load_config


def class_names(meta: Any) -> list[str] | None:
    """The names in a data set's ``metainfo`` or a checkpoint's ``meta``, in the order of the scores; None: unknown."""
    if not isinstance(meta, Mapping):
        return None
    # mmengine stores the data set's metainfo; older files have the names alone.
    names = meta.get('classes') or meta.get('CLASSES')
    if names is None:
        return class_names(meta.get('dataset_meta'))
    listed = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    return list(names) if listed else None


def config_class_names(source: Any) -> list[str] | None:
    """The names of the data set that a config file trains on, from its ``metainfo`` or its class; None: unknown."""
    if not isinstance(source, str):
        return None
    cfg = load_config(source)
    for dataset in _datasets((cfg.get('train_dataloader') or {}).get('dataset')):
        kind = dataset.get('type')
        if isinstance(kind, str):
            # What cannot be imported is not known, and the model needs it no more.
            with contextlib.suppress(Exception), DATASETS.switch_scope_and_registry(cfg.get('default_scope')) as known:
                kind = known.get(kind)
        names = class_names(dataset.get('metainfo')) or class_names(getattr(kind, 'METAINFO', None))
        if names is not None:
            return names
    return None


def _datasets(config: Any) -> Iterator[Mapping]:
    """A data set's config, and those that it wraps."""
    if isinstance(config, Mapping):
        yield config
        for inner in (config.get('dataset'), *(config.get('datasets') or ())):
            yield from _datasets(inner)


def score_count(head: Any, width: int) -> tuple[int, int]:
    """A head's number of classes, and of scores per position and anchor.

    ``width``: channels of the class scores. A softmax of a detector has one score more, the background, at the end.
    """
    scores = getattr(head, 'cls_out_channels', None) or width
    return getattr(head, 'num_classes', None) or scores, scores


def scores_classes(head: Any, width: int) -> bool:
    """Whether a feature of this width in a head is its class scores, judged by the width."""
    counts = [getattr(head, name, None) for name in ('num_classes', 'out_channels', 'cls_out_channels')]
    anchors = getattr(head, 'num_base_priors', None)
    if isinstance(anchors, int) and isinstance(counts[2], int):
        counts.append(anchors * counts[2])
    return width in counts
