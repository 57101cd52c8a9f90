"""Drawing of labels, boxes and class names into images."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.registry import VISUALIZERS
from torch import Tensor, nn

from ..hosts import host_of

#: Smaller pictures of detections are enlarged until the longer side has at least this many pixels.
_LEGIBLE = 192


def original_image(sample: Any, inputs: Tensor) -> np.ndarray:
    """The image as RGB, (H, W, 3), uint8, at the file's size, which the hosts' predictions refer to."""
    file = sample.get('img_path')
    image = cv2.imread(file) if file else None
    # Images without a file are of data sets that hold them as RGB, such as CIFAR.
    return loaded_image(inputs, bgr=bool(file)) if image is None else np.ascontiguousarray(image[..., ::-1])


def loaded_image(inputs: Tensor, bgr: bool = True) -> np.ndarray:
    """An image as its pipeline gives it, ``(C, H, W)`` with BGR or RGB first, as RGB, (H, W, 3), uint8.

    One or two channels: the first, in grey. More than three: the first three. Values far from bytes, as of 16 bits or
    from 0 to 1, are scaled to them.
    """
    image = inputs[: 3 if len(inputs) >= 3 else 1].expand(3, *inputs.shape[1:]).float()
    low, high = image.min(), image.max()
    if high > 1024 or (inputs.is_floating_point() and high <= 1):
        image = (image - low) * (255 / (high - low).clamp(min=1e-12))
    image = image.permute(1, 2, 0).clamp(0, 255).to(torch.uint8).numpy()
    return np.ascontiguousarray(image[..., ::-1] if bgr else image)


def draw(model: nn.Module, image: np.ndarray, sample: Any, meta: Mapping, truth: bool = False) -> np.ndarray:
    """Draw a data sample's ground truth or prediction into an image: coloured labels, boxes, or the class name.

    Args:
        model: a model of the host that made the sample.
        image: RGB, ``(H, W, 3)``, uint8.
        meta: the data set's metainfo, with ``classes`` and ``palette``.
    Returns:
        A new image, RGB; small ones are enlarged, except segmented ones.
    """
    kind = {'mmseg': _draw_segmentation, 'mmdet': _draw_detection, 'mmpretrain': _draw_classification}
    return kind[host_of(model)](image, sample, meta, truth)


def _labels(sample: Any, truth: bool) -> np.ndarray:
    return (sample.gt_sem_seg if truth else sample.pred_sem_seg).data[0].cpu().numpy()


def _draw_segmentation(image: np.ndarray, sample: Any, meta: Mapping, truth: bool) -> np.ndarray:
    """Each class in its palette's colour; ignored pixels, and those of a black class, show the image in pale grey."""
    labels, palette = _labels(sample, truth), np.array(meta['palette'], np.uint8)
    if labels.shape != image.shape[:2]:
        labels = cv2.resize(labels.astype(np.uint8), image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    pale = (178 + 0.3 * cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)).astype(np.uint8)
    drawn = np.repeat(pale[..., None], 3, -1)
    shown = np.isin(labels, np.flatnonzero(palette.any(-1)))
    drawn[shown] = palette[labels[shown]]
    return drawn


def legend(model: nn.Module, samples: Iterable[tuple[Any, bool]], meta: Mapping) -> dict[str, tuple[int, int, int]]:
    """The colours, as RGB, of the classes that occur where labels are drawn; empty where names are written.

    Args:
        samples: the data samples that are drawn, each with whether its truth is. model, meta: see :func:`draw`.
    """
    if host_of(model) != 'mmseg':
        return {}
    occur = set().union(*(np.unique(_labels(sample, truth)).tolist() for sample, truth in samples))
    pairs = zip(meta['classes'], meta['palette'])
    return {name: tuple(map(int, colour)) for k, (name, colour) in enumerate(pairs) if k in occur and any(colour)}


def _draw_detection(image: np.ndarray, sample: Any, meta: Mapping, truth: bool, threshold: float = 0.3) -> np.ndarray:
    found = (sample.gt_instances if truth else sample.pred_instances).cpu()
    if not truth:
        found = found[found.scores >= threshold]
    # Ground-truth boxes come wrapped (mmdet's HorizontalBoxes).
    boxes = getattr(found.bboxes, 'tensor', found.bboxes)
    classes, palette = meta.get('classes'), meta.get('palette')
    # Small images have no room for names.
    times = max(1, -(-_LEGIBLE // max(image.shape[:2])))
    drawn = cv2.resize(image, None, fx=times, fy=times, interpolation=cv2.INTER_NEAREST)
    for box, label in zip((boxes * times).round().int().tolist(), found.labels.tolist()):
        if isinstance(palette, (list, tuple)) and label < len(palette):
            colour = [int(c) for c in palette[label]]
        else:
            colour = _distinct_colour(label)
        cv2.rectangle(drawn, box[:2], box[2:], colour, 2 if times > 1 else 1)
        _tag(drawn, str(classes[label]) if classes else str(label), box[:2], colour)
    return drawn


def _distinct_colour(label: int) -> list[int]:
    """A colour for a class without one: hues spaced by the golden angle differ for any number of classes."""
    hue = np.uint8([[[int(label * 137.508) % 180, 255, 255]]])
    return cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0].tolist()


def _tag(image: np.ndarray, text: str, corner: list[int], colour: list[int]) -> None:
    """A name on a background of the given colour, above a corner, or below it if there is no room."""
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.38, 1)
    left = min(max(corner[0], 0), max(image.shape[1] - width - 4, 0))
    bottom = max(corner[1], height + 5)
    cv2.rectangle(image, (left, bottom - height - 5), (left + width + 3, bottom), colour, cv2.FILLED)
    dark = np.dot(colour, (0.299, 0.587, 0.114)) > 128
    ink = (0, 0, 0) if dark else (255, 255, 255)
    cv2.putText(image, text, (left + 2, bottom - 3), cv2.FONT_HERSHEY_SIMPLEX, 0.38, ink, 1, cv2.LINE_AA)


def _draw_classification(image: np.ndarray, sample: Any, meta: Mapping, truth: bool) -> np.ndarray:
    label = int((sample.gt_label if truth else sample.pred_label).flatten()[0])
    classes = meta.get('classes')
    drawn = cv2.resize(image, None, fx=4, fy=4, interpolation=cv2.INTER_NEAREST) if max(image.shape) < 64 else image
    text = str(classes[label]) if classes else str(label)
    return cv2.putText(drawn.copy(), text, (2, drawn.shape[0] - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 0), 1)


def side_by_side(
    panels: dict[str, np.ndarray], height: int = 192, names: Mapping[str, tuple[int, int, int]] | None = None
) -> np.ndarray:
    """Titled panels in a row, all enlarged to equal height, over a :func:`legend`; RGB."""
    height = max(height, *(p.shape[0] for p in panels.values()))
    columns = []
    for title, panel in panels.items():
        width = round(panel.shape[1] * height / panel.shape[0])
        body = cv2.resize(panel, (width, height), interpolation=cv2.INTER_NEAREST)
        head = np.full((20, width, 3), 255, np.uint8)
        cv2.putText(head, title, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
        columns.append(np.pad(np.concatenate([head, body]), ((0, 0), (0, 4), (0, 0)), constant_values=255))
    row = np.concatenate(columns, 1)
    return np.concatenate([row, *_legend_lines(names, row.shape[1])]) if names else row


def _legend_lines(names: Mapping[str, tuple[int, int, int]], width: int) -> list[np.ndarray]:
    """A square of each colour with its name, in as many lines as the width needs."""
    lines, left = [], width
    for name, colour in names.items():
        wide = 30 + cv2.getTextSize(name, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)[0][0]
        if left + wide > width:
            lines.append(np.full((22, width, 3), 255, np.uint8))
            left = 4
        cv2.rectangle(lines[-1], (left, 5), (left + 12, 17), colour, cv2.FILLED)
        cv2.putText(lines[-1], name, (left + 17, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
        left += wide
    return lines


_VISUALIZERS = {
    'mmseg': 'mmseg.SegLocalVisualizer',
    'mmdet': 'mmdet.DetLocalVisualizer',
    'mmpretrain': 'mmpretrain.UniversalVisualizer',
}


class HostPictures:
    """Draws predictions with the visualizer of the model's host, into a folder.

    Args:
        model: a model of a host.
        meta: ``classes`` and ``palette``, as far as known.
    """

    def __init__(self, model: nn.Module, meta: Mapping, folder: str | Path):
        self._host, self.folder = host_of(model), Path(folder)
        # Not built by the registry, which would make it the current one of the process.
        self._visualizer = VISUALIZERS.get(_VISUALIZERS[self._host])()
        classes, palette = meta.get('classes'), meta.get('palette')
        if self._host == 'mmseg':  # it draws none without names and colours
            classes = classes or [str(i) for i in range(max(model.num_classes, 2))]
            palette = palette or [_distinct_colour(i) for i in range(len(classes))]
        # mmdet takes a list of three for three colours.
        palette = palette and [tuple(colour) for colour in palette]
        self._visualizer.dataset_meta = dict(classes=classes, palette=palette)
        self._given: set[str] = set()

    def path(self, name: str) -> Path:
        """``<name>.png`` in the folder, or ``<name>_2.png`` if that was given before."""
        names = (name, *(f'{name}_{n}' for n in range(2, len(self._given) + 2)))
        name = next(free for free in names if free not in self._given)
        self._given.add(name)
        return self.folder / f'{name}.png'

    def write(self, path: Path, image: np.ndarray, sample: Any, truth: bool = False) -> None:
        """Write a picture to a :meth:`path`.

        Args:
            image: RGB, ``(H, W, 3)``, uint8, at the size that the prediction is for.
            truth: draw the sample's ground truth, too.
        """
        if self._host == 'mmpretrain':
            # Its text has a size of its own.
            enlarged = _LEGIBLE if min(image.shape[:2]) < _LEGIBLE else None
            self._visualizer.visualize_cls(image, sample.cpu(), draw_gt=truth, resize=enlarged, out_file=str(path))
        else:
            self._visualizer.add_datasample(path.stem, image, sample.cpu(), draw_gt=truth, out_file=str(path))
