"""Names of classes: of a data set, in a checkpoint's meta, and in a config."""

from collections.abc import Iterator, Mapping
from typing import Any

from ..registry import DATASETS, resolved
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
    for dataset in datasets((cfg.get('train_dataloader') or {}).get('dataset')):
        kind = resolved(dataset.get('type'), DATASETS, cfg.get('default_scope'))
        names = class_names(dataset.get('metainfo')) or class_names(getattr(kind, 'METAINFO', None))
        if names is not None:
            return names
    return None


def datasets(config: Any) -> Iterator[Mapping]:
    """A data set's config, and those that it wraps."""
    if isinstance(config, Mapping):
        yield config
        for inner in (config.get('dataset'), *(config.get('datasets') or ())):
            yield from datasets(inner)


def score_count(head: Any, width: int) -> tuple[int, int]:
    """A head's number of classes, and of scores per position and anchor.

    ``width``: channels of the class scores. A softmax of a detector has one score more, the background, at the end.
    """
    scores = getattr(head, 'cls_out_channels', None) or width
    return getattr(head, 'num_classes', None) or scores, scores


def scores_classes(head: Any, width: int) -> bool:
    """Whether a feature of this width in a head is its class scores, judged by the width."""
    counts = [getattr(head, name, None) for name in ('num_classes', 'out_channels', 'cls_out_channels')]
    anchors = getattr(head, 'num_base_priors', 1)
    anchors = {1, *(anchors if isinstance(anchors, (list, tuple)) else [anchors])}
    return width in {count * n for count in counts if isinstance(count, int) for n in anchors}
