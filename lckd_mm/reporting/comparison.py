"""Image-by-image comparison of nets: which images distillation improved or worsened, with pictures."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import nn

from ..config import check_data, has_teacher, plain_model, teachers_of
from ..contexts import preserved_rng
from ..distillation import FrozenTeacher
from ..errors import one_line
from ..evaluation.drawing import draw, legend, original_image
from ..hosts import host_of
from ..storage.checkpoint import load_strictly
from .runs import LEARNING, Group, Run, fingerprint_of
from .scores import box_f1, image_iou

#: Name and explanation of each host's score of an image, for captions.
SCORES = {
    'mmseg': (
        'mIoU of the image',
        'Mean intersection over union of the classes in this image or its prediction, from 0 to 1. (The metric of the '
        'table sums pixels over all images first.)',
    ),
    'mmdet': (
        'F1 of the image',
        'F1 = 2 TP / (2 TP + FP + FN) of the boxes of this image with a score of at least 0.3, from 0 to 1. In the '
        'order of their scores, each is matched with the free true box of its class with the largest IoU, if that is '
        'at least 0.5. Only these boxes are drawn.',
    ),
    'mmpretrain': (
        'probability of the true class',
        'Probability that a net gives to the true class. Regressions are images that the distilled student gets wrong '
        'and the other right; improvements are the reverse.',
    ),
}
#: Maximum and minimum size of the longer side of pictures, in pixels.
_LARGEST, _SMALLEST = 360, 192
TEACHER, ALONE, DISTILLED, NET = 'teacher', 'student alone', 'student distilled', 'prediction'


@dataclass
class Verdict:
    """One net's prediction for one image, with its score."""

    score: float
    sample: Any
    label: str = ''
    right: bool | None = None


@dataclass
class Row:
    """One image with every net's verdict; ``change`` is the last net's score minus the reference's."""

    name: str
    truth: str
    change: float
    verdicts: dict[str, Verdict]
    panels: dict[str, bytes]  # PNGs
    samples: list[tuple[Any, bool]]  # what is drawn, and whether its truth is


@dataclass
class Comparison:
    """The last of ``nets`` compared with ``reference``; None if there is no reference."""

    title: str
    host: str
    score: str
    caption: str
    seed: int | None
    nets: list[str]
    reference: str | None
    images: int
    of: int
    notes: list[str]
    means: dict[str, float] = field(default_factory=dict)
    regressions: list[Row] = field(default_factory=list)
    improvements: list[Row] = field(default_factory=list)
    worse: int = 0
    better: int = 0
    #: The classes in the pictures, and their colours, where no names are written.
    legend: dict[str, tuple[int, int, int]] = field(default_factory=dict)


class Comparer:
    """Compares groups of runs on their configs' validation images; predictions are cached per checkpoint.

    Args:
        images: number of images, evenly spaced over the set; None for 200, or 1000 for classification.
        rows: number of pictures in each of the two lists. device: device of the nets.
    """

    def __init__(self, images: int | None = None, rows: int = 4, device: str = 'cpu'):
        self.images, self.rows, self.device = images, rows, device
        self._kept: dict[tuple, list[Verdict]] = {}
        self._data: dict[str, tuple[Any, list[int]]] = {}

    def compare(self, group: Group) -> Comparison:
        """Compare a group's student with the student trained alone; failing that, with the teacher, or with nothing.

        Raises:
            FileNotFoundError: no checkpoint, or no data. ValueError: images without ground truth, or of a kind that
                cannot be scored; a model that does not match its checkpoint.
        """
        run, alone, notes = _choose(group)
        cfg = run.cfg
        loader = 'val_dataloader' if cfg.get('val_dataloader') else 'test_dataloader'
        if not cfg.get(loader):
            raise ValueError('the config has neither a val_dataloader nor a test_dataloader')
        check_data(cfg, (loader,))
        with preserved_rng(), DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')):
            student = self._student(run)
            host = host_of(student)
            if host not in SCORES:
                raise ValueError(f'{type(student).__name__}: pictures need a model of {", ".join(SCORES)}')
            dataset, indices = self._dataset(cfg, loader, host)
            found: dict[str, list[Verdict]] = {}

            def judge(name: str, checkpoint: str | Path, predict: Callable[[dict], list]) -> None:
                key = str(checkpoint), fingerprint_of(cfg, loader)
                if key not in self._kept:
                    batch = int(cfg[loader].get('batch_size') or 1)
                    self._kept[key] = _predict(predict, host, dataset, indices, batch)
                found[name] = self._kept[key]

            if has_teacher(cfg) and any('model' in one for one in teachers_of(cfg).values()):
                try:
                    teacher = self._teacher(run, group, notes)
                    judge(TEACHER, teacher.checkpoint, lambda data: teacher.predict(data, student.data_preprocessor))
                except Exception as error:  # the students can still be compared
                    notes.append(f'The teacher is left out: {sentence(error)}')
            if alone is not None:
                judge(ALONE, alone.checkpoint, self._student(alone).test_step)
            judge(DISTILLED if group.role in LEARNING else NET, run.checkpoint, student.test_step)
            reference = ALONE if alone is not None else TEACHER if TEACHER in found else None
            counts = len(indices), len(dataset)
            result = Comparison(group.title, host, *SCORES[host], run.seed, list(found), reference, *counts, notes)
            self._fill(result, found, student, dataset, indices)
        return result

    def _student(self, run: Run) -> nn.Module:
        model = revert_sync_batchnorm(plain_model(run.cfg))
        load_strictly(model, str(run.checkpoint), str(run.folder))
        return model.to(self.device).eval()

    def _teacher(self, run: Run, group: Group, notes: list[str]) -> FrozenTeacher:
        # Of several teachers the first that makes predictions.
        given = next(one for one in teachers_of(run.cfg).values() if 'model' in one)
        # Its predictions are those of full precision.
        unused = 'taps', 'precision', 'stored'
        given = {key: value for key, value in copy.deepcopy(dict(given)).items() if key not in unused}
        named = str(given.get('checkpoint'))
        twins = [r for r in group.teacher.runs if r.seed == run.seed and r.checkpoint] if group.teacher else []
        if '://' not in named and not Path(named).is_file() and twins:
            given['checkpoint'] = str(twins[0].checkpoint)
            notes.append(f'The teacher at {named} was not found; that of {twins[0].folder} is used.')
        teacher = FrozenTeacher(**given)
        teacher.load()
        teacher.model.to(self.device)
        return teacher

    def _dataset(self, cfg: Config, loader: str, host: str) -> tuple[Any, list[int]]:
        key = fingerprint_of(cfg, loader)
        if key not in self._data:
            settings = dict(cfg[loader], num_workers=0, persistent_workers=False)
            dataset = Runner.build_dataloader(settings).dataset
            count = min(self.images or (1000 if host == 'mmpretrain' else 200), len(dataset))
            self._data[key] = dataset, np.linspace(0, len(dataset) - 1, count).round().astype(int).tolist()
        return self._data[key]

    def _fill(self, result: Comparison, found: dict, student: nn.Module, dataset: Any, indices: list[int]) -> None:
        """Choose and draw the rows."""
        own = found[result.nets[-1]]
        against = found[result.reference] if result.reference else None
        changes = [v.score - (against[i].score if against else 0.0) for i, v in enumerate(own)]
        order = sorted((i for i, change in enumerate(changes) if math.isfinite(change)), key=lambda i: changes[i])
        if not order:
            raise ValueError('no image has a truth that counts')
        result.means = {name: float(np.nanmean([v.score for v in verdicts])) for name, verdicts in found.items()}
        if against is None:
            down = up = order
        elif result.host == 'mmpretrain':
            down = [i for i in order if against[i].right and not own[i].right]
            up = [i for i in order if own[i].right and not against[i].right]
        else:
            down = [i for i in order if changes[i] < 0]
            up = [i for i in order if changes[i] > 0]
        result.worse, result.better = len(down), len(up)
        for rows, chosen in ((result.regressions, down), (result.improvements, up[::-1])):
            for i in chosen[: self.rows]:
                verdicts = {name: several[i] for name, several in found.items()}
                rows.append(_row(verdicts, changes[i], student, dataset, indices[i]))
        shown = [sample for row in result.regressions + result.improvements for sample in row.samples]
        result.legend = legend(student, shown, dataset.metainfo)


def _predict(predict: Callable, host: str, dataset: Any, indices: list[int], batch: int) -> list[Verdict]:
    verdicts = []
    for start in range(0, len(indices), batch):
        with torch.no_grad():
            samples = predict(pseudo_collate([dataset[i] for i in indices[start : start + batch]]))
        for sample in samples:
            sample = sample.cpu()
            # Per-pixel class scores take far more memory than everything else.
            for large in {'seg_logits', 'i_seg_logits'} & set(sample.keys()):
                delattr(sample, large)
            verdicts.append(_judged(host, sample, dataset.metainfo.get('classes')))
    return verdicts


def _row(verdicts: dict[str, Verdict], change: float, student: nn.Module, dataset: Any, index: int) -> Row:
    batch = pseudo_collate([dataset[index]])
    truth, meta = batch['data_samples'][0], dataset.metainfo
    image = original_image(truth, batch['inputs'][0])
    panels, label = {'input': image}, ''
    if host_of(student) == 'mmpretrain':
        label = _class_name(int(truth.gt_label.flatten()[0]), meta.get('classes'))
    else:
        panels['truth'] = draw(student, image, truth, meta, truth=True)
        panels |= {name: draw(student, image, verdict.sample, meta) for name, verdict in verdicts.items()}
    file = truth.get('img_path')
    shown = [(truth, True), *((v.sample, False) for v in verdicts.values() if v.sample is not None)]
    # Labels are shrunk without mixing the colours of two classes.
    labels = host_of(student) == 'mmseg'
    pngs = {title: _png(panel, mixed=not labels or title == 'input') for title, panel in panels.items()}
    return Row(Path(file).name if file else f'image {index}', label, change, verdicts, pngs, shown)


def _png(image: np.ndarray, mixed: bool) -> bytes:
    """A picture as PNG; small ones are enlarged by an integer factor, and large ones are shrunk."""
    longest = max(image.shape[:2])
    if longest > _LARGEST:
        how = cv2.INTER_AREA if mixed else cv2.INTER_NEAREST
        image = cv2.resize(image, None, fx=_LARGEST / longest, fy=_LARGEST / longest, interpolation=how)
    times = max(1, round(_SMALLEST / longest))
    image = cv2.resize(image, None, fx=times, fy=times, interpolation=cv2.INTER_NEAREST)
    return cv2.imencode('.png', np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()


def _choose(group: Group) -> tuple[Run, Run | None, list[str]]:
    """The run to show and its reference, with the first seed that both have; finished runs first."""
    runs = [run for run in [*group.finished, *group.runs] if run.checkpoint]
    if not runs:
        raise FileNotFoundError('none of its runs has a checkpoint that is still there')
    others = [run for run in (group.alone.runs if group.alone else []) if run.checkpoint]
    pairs = [(run, other) for run in runs for other in others if run.seed == other.seed]
    if pairs:
        return (*pairs[0], [])
    if not others:
        return runs[0], None, []
    note = f'No seed is common to both: this is seed {runs[0].seed} against seed {others[0].seed}.'
    return runs[0], others[0], [note]


def _judged(host: str, sample: Any, classes: Any) -> Verdict:
    needed = dict(mmseg='gt_sem_seg', mmdet='gt_instances', mmpretrain='gt_label')[host]
    if needed not in sample or (host == 'mmdet' and 'bboxes' not in sample.gt_instances):
        raise ValueError('the validation images have no ground truth: the pipeline lacks LoadAnnotations')
    if host == 'mmseg':
        predicted, truth = sample.pred_sem_seg.data[0], sample.gt_sem_seg.data[0]
        if predicted.shape != truth.shape:
            raise ValueError(f'prediction and truth differ in size: {tuple(predicted.shape)}, {tuple(truth.shape)}')
        sample.pred_sem_seg.data = sample.pred_sem_seg.data.to(torch.int16)
        return Verdict(image_iou(predicted, truth), sample)
    if host == 'mmdet':
        if 'bboxes' not in sample.pred_instances:
            raise ValueError('the model predicts no boxes')
        found, truth = sample.pred_instances, sample.gt_instances
        ignored = sample.ignored_instances.bboxes if 'ignored_instances' in sample else None
        plain = [getattr(boxes, 'tensor', boxes) for boxes in (found.bboxes, truth.bboxes, ignored)]
        return Verdict(box_f1(plain[0], found.labels, found.scores, plain[1], truth.labels, plain[2]), sample)
    if sample.gt_label.numel() != 1 or 'pred_score' not in sample:
        raise ValueError('images of one true class and scores of classes are needed')
    truth, predicted = int(sample.gt_label.flatten()[0]), int(sample.pred_score.argmax())
    return Verdict(float(sample.pred_score[truth]), None, _class_name(predicted, classes), predicted == truth)


def _class_name(label: int, classes: Any) -> str:
    return str(classes[label]) if classes else str(label)


def sentence(error: Exception) -> str:
    """An error message as a sentence for the page."""
    text = one_line(error)
    return text if text.endswith(('.', '…')) else text + '.'
