"""Boxes that mmdet's dense heads predict at each position, decoded from their maps by the heads' own parts."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


def _deltas(head: Any, rows: Tensor, priors: Tensor, stride: float) -> Tensor:
    return head.bbox_coder.decode(priors, rows)


def _points(head: Any, rows: Tensor, priors: Tensor, stride: float) -> Tensor:
    distances = rows.clamp(min=0) * stride if head.norm_on_bbox else rows.exp()
    return head.bbox_coder.decode(priors, distances)


def _distributions(head: Any, rows: Tensor, priors: Tensor, stride: float) -> Tensor:
    return head.bbox_coder.decode(head.anchor_center(priors), head.integral(rows) * stride)


def _scaled_distances(head: Any, rows: Tensor, priors: Tensor, stride: float) -> Tensor:
    return head.bbox_coder.decode(priors, rows * stride)


def _distances(head: Any, rows: Tensor, priors: Tensor, stride: float) -> Tensor:
    return _scaled_distances(head, rows.exp() if head.exp_on_reg else rows, priors, stride)


class _Kind(NamedTuple):
    """How a head's boxes follow from its maps, and the part of the head whose outputs these maps are."""

    decode: Callable[[Any, Tensor, Tensor, float], Tensor]
    part: str


_KINDS = {
    'RetinaHead': _Kind(_deltas, 'retina_reg'),
    'RPNHead': _Kind(_deltas, 'rpn_reg'),
    'SSDHead': _Kind(_deltas, 'reg_convs'),
    'ATSSHead': _Kind(_deltas, 'scales'),
    'PAAHead': _Kind(_deltas, 'scales'),
    'FCOSHead': _Kind(_points, 'scales'),
    'GFLHead': _Kind(_distributions, 'scales'),
    'RTMDetHead': _Kind(_scaled_distances, 'scales'),
    'RTMDetSepBNHead': _Kind(_distances, 'rtm_reg'),
}
#: What decides how boxes are decoded: a head that has its own is unknown.
_METHODS = ('forward', 'forward_single', '_predict_by_feat_single')


def _kind(head: Any) -> _Kind | None:
    for base in type(head).__mro__:
        if base.__name__ in _KINDS and base.__module__.startswith('mmdet.'):
            same = all(getattr(type(head), name, None) is getattr(base, name, None) for name in _METHODS)
            return _KINDS[base.__name__] if same else None
    return None


def check_boxes(head: Any, who: str) -> None:
    """Raise ValueError if it is not known how this head's boxes are decoded."""
    if _kind(head) is None:
        found = 'the tap lies in no head' if head is None else f'how a {type(head).__name__} decodes them is not known'
        raise ValueError(
            f'{who}: compares the boxes of a dense head, and {found}; known are {", ".join(_KINDS)}. Compare the '
            'levels of the neck instead, by PKDLoss'
        )


def check_box_layers(head: Any, layers: Sequence[nn.Module | None], who: str) -> None:
    """Raise ValueError unless these layers, None for no output of one, give what :func:`decoded_boxes` decodes."""
    part = _kind(head).part
    module = getattr(head, part)
    of_levels = isinstance(module, nn.ModuleList)
    if list(layers) != (list(module) if of_levels else [module]):
        taps = f'all of {part}.0 to {part}.{len(module) - 1}, in order' if of_levels else f'{part}#*'
        raise ValueError(
            f'{who}: the boxes of a {type(head).__name__} follow from what its {part} gives, and other tensors are '
            f'tapped; tap {taps}'
        )


def check_same_boxes(student: Any, teacher: Any, who: str) -> None:
    """Raise ValueError if the boxes of both heads do not belong to the same anchors or points."""
    grids = []
    for head in (student, teacher):
        sizes = [(2, 3)] * head.prior_generator.num_levels
        grids.append(head.prior_generator.grid_priors(sizes, dtype=torch.float64, device='cpu'))
    same = len(grids[0]) == len(grids[1]) and all(a.shape == b.shape and torch.allclose(a, b) for a, b in zip(*grids))
    if not same:
        raise ValueError(
            f'{who}: box i of the student belongs to another anchor than box i of the teacher: their heads '
            f'({type(student).__name__}, {type(teacher).__name__}) differ in anchors, points or strides; compare the '
            'levels of the neck instead, by PKDLoss'
        )


def decoded_boxes(head: Any, maps: Sequence[Tensor]) -> Tensor:
    """The boxes that a dense head predicts, in pixels of the padded images, not clipped to them.

    Args:
        head: mmdet's, known to :func:`check_boxes`.
        maps: one per level, ``(B, A * D, H, W)`` with A anchors per position and D numbers per box: the outputs of the
            part that :func:`check_box_layers` names; where a head multiplies each level by a scale, those behind it.
    Returns:
        ``(B, N, 4)``, x1, y1, x2, y2: level by level, row by row, the anchors of a position side by side.
    Raises:
        ValueError: a number of maps other than that of the head's levels.
    """
    kind, generator = _kind(head), head.prior_generator
    if len(maps) != generator.num_levels:
        raise ValueError(
            f'boxes of a {type(head).__name__}: {len(maps)} maps for its {generator.num_levels} levels; tap all of them'
        )
    sizes = [tuple(x.shape[2:]) for x in maps]
    grids = generator.grid_priors(sizes, dtype=maps[0].dtype, device=maps[0].device)
    boxes = []
    for x, priors, anchors, stride in zip(maps, grids, generator.num_base_priors, generator.strides):
        rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1] // anchors)
        of_rows = priors.expand(len(x), -1, -1).flatten(0, 1)
        boxes.append(kind.decode(head, rows, of_rows, stride[0]).unflatten(0, (len(x), len(priors))))
    return torch.cat(boxes, 1)


def positives(head: Any, maps: Sequence[Tensor], data_samples: list) -> Tensor:
    """The positions to which a GFLHead's own assignment gives an object, as for its own loss.

    Args:
        maps: one per level, ``(B, C, H, W)``, for their sizes and device. data_samples: those of the batch.
    Returns:
        ``(B, N)``, bool, in the order of :func:`decoded_boxes`.
    """
    from mmdet.models.utils import unpack_gt_instances

    truth, ignored, metas = unpack_gt_instances(data_samples)
    with torch.no_grad():
        anchors, valid = head.get_anchors([x.shape[2:] for x in maps], metas, device=maps[0].device)
        labels = head.get_targets(anchors, valid, truth, metas, batch_gt_instances_ignore=ignored)[1]
    labels = torch.cat(labels, 1)
    return (labels >= 0) & (labels < head.num_classes)
