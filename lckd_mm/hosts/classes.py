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
    return data_meta(load_config(source))['classes'] if isinstance(source, str) else None


def data_meta(cfg: Mapping, meta: Mapping | None = None) -> dict[str, Any]:
    """Names and colours of a net's classes, ``classes`` and ``palette``, lists; None: unknown.

    From its checkpoint's ``meta``, else from the data sets of its config: their ``metainfo`` or their class.
    """
    known = [(meta or {}).get('dataset_meta'), meta]
    for loader in ('train_dataloader', 'test_dataloader'):
        for dataset in datasets((cfg.get(loader) or {}).get('dataset')):
            kind = resolved(dataset.get('type'), DATASETS, cfg.get('default_scope'))
            known += [dataset.get('metainfo'), getattr(kind, 'METAINFO', None)]
    classes = next((names for source in known if (names := class_names(source))), None)
    palettes = (source.get('palette') for source in known if isinstance(source, Mapping))
    fitting = (p for p in palettes if isinstance(p, (list, tuple)) and len(p) == len(classes or ()))
    return dict(classes=classes, palette=next(([list(map(int, colour)) for colour in p] for p in fitting), None))


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
