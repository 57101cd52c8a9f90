"""mmengine hooks: storing connectors, weight schedules, the Lipschitz monitor, the teacher's check, pictures."""

import copy
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import count, islice, pairwise
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.dataset import InfiniteSampler, pseudo_collate
from mmengine.dist import get_world_size, master_only
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import Tensor

from .checkpoint import STATE_KEY
from .distiller import Distiller
from .functional import transmitting_norm
from .functional.lipschitz import GAPS, lipschitz_gap
from .hosts import eval_mode, host_of, preserved_rng
from .registry import HOOKS


def distiller_of(runner: Any, who: str) -> Distiller:
    """The runner's Distiller, without its wrapper; TypeError where the model is something else."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    if not isinstance(model, Distiller):
        raise TypeError(f'{who}: the model is a {type(model).__name__}, not an lckd_mm.Distiller; take the hook away')
    return model


@HOOKS.register_module()
class DistillationHook(Hook):
    """Stores connectors and losses' buffers beside the student in every checkpoint, and brings them back on resume.

    They stand under the key ``lckd_mm`` of the file; ``state_dict`` is the student's alone. ``load_from`` takes the
    student and leaves the connectors as they are. Before the first iteration it also fills what a connector estimates
    from training images (:class:`~lckd_mm.connectors.MarginReLU`). ``tools/train.py`` adds this hook by itself.

    Raises:
        ValueError: on resuming from a file that has no such key (a plain run's), or has other connectors.
    """

    priority = 'VERY_HIGH'

    def before_run(self, runner) -> None:
        distiller_of(runner, 'DistillationHook').state_is_stored = True

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        model = distiller_of(runner, 'DistillationHook')
        checkpoint[STATE_KEY] = dict(version=1, terms=model.distillation_state())

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if not getattr(runner, '_resume', False):
            return
        if STATE_KEY not in checkpoint:
            raise ValueError(
                f'resume: the checkpoint has no {STATE_KEY!r} key, so it is of a plain run and not of this '
                'distillation; start from it with load_from instead of resuming'
            )
        distiller_of(runner, 'DistillationHook').load_distillation_state(checkpoint[STATE_KEY]['terms'])

    @torch.no_grad()
    def before_train(self, runner) -> None:
        """Show training images to the connectors that wait for them: margins without BatchNorm, paraphrasers."""
        model = distiller_of(runner, 'DistillationHook')
        if runner._load_from and not runner._resume:
            # A whole student has just been written over what it had of the teacher.
            model.take_over()
        waiting = [pair for term in model.terms.values() for pair in term.waiting()]
        if not waiting:
            return
        loader_cfg = copy.deepcopy(runner.cfg.get('train_dataloader'))
        if not isinstance(loader_cfg, dict):
            raise ValueError(
                f'DistillationHook: a {type(waiting[0][1]).__name__} at {waiting[0][0]!r} needs training images, and '
                'the runner has no train_dataloader in its config to read them from; build it from a config'
            )
        for key in ('prefetch_factor', 'timeout', 'multiprocessing_context'):
            loader_cfg.pop(key, None)  # of worker processes
        loader_cfg.update(num_workers=0, persistent_workers=False)
        with preserved_rng():
            # A loader of its own: the run's own sampler would go on from where this one stops.
            loader = runner.build_dataloader(loader_cfg, seed=runner.seed)
            batches = max(connector.batches for _, connector in waiting)
            for i, batch in enumerate(islice(_again_and_again(loader), batches)):
                left = [(tap, connector) for tap, connector in waiting if i < connector.batches]
                data = model.data_preprocessor(batch, True)
                names = list(dict.fromkeys(tap for tap, _ in left))
                features = model.teacher(model.teacher_taps, names, data['inputs'], data['data_samples'])
                for tap, connector in left:
                    for level in [features[tap]] if isinstance(features[tap], Tensor) else features[tap]:
                        connector.observe(level)
        for tap, connector in waiting:
            runner.logger.info(f'{type(connector).__name__} at {tap!r}: {connector.settle()}')


def _again_and_again(loader: Any) -> Iterator:
    """Its batches, epoch after epoch."""
    for epoch in count():
        if hasattr(loader.sampler, 'set_epoch'):
            loader.sampler.set_epoch(epoch)
        batch = None
        for batch in loader:
            yield batch
        if batch is None:
            raise ValueError(
                'DistillationHook: the train_dataloader gives no batch, and a connector needs training images; make '
                'batch_size smaller than the data set, or drop_last=False'
            )


@HOOKS.register_module()
class LossWeightHook(Hook):
    r"""A schedule for the weight of one term: the weight in force is the term's own times a factor of the time t.

    * ``constant``: ``factor``.
    * ``step``: ``gamma`` to the power of the number of ``milestones`` at or before t.
    * ``linear``, ``cosine``: from ``start`` at ``begin`` to ``stop`` at ``end``, held before and after; cosine is
      :math:`stop + (start - stop) (1 + \cos \pi p) / 2` with p the part of the way.
    * ``stop``: 1 before ``end``, then 0.

    The factor follows from the runner's iteration alone, so that it survives resume. The weight in force is logged
    as ``weight_<method>`` (``loss_kd`` gives ``weight_kd``).

    Args:
        term: name of the term.
        schedule: one of the names above.
        by: 'iter', or 'epoch': a pass over the training data, in iteration-based loops too.
        begin, end, milestones: times in units of ``by``; a float between 0 and 1 is a part of the whole training.
    Raises:
        ValueError: unknown schedule or unit, missing or negative values. KeyError: no such term.
    """

    SCHEDULES = ('constant', 'step', 'linear', 'cosine', 'stop')

    def __init__(
        self,
        term: str,
        schedule: str,
        by: str = 'iter',
        begin: float = 0,
        end: float | None = None,
        start: float = 0.0,
        stop: float = 1.0,
        factor: float = 1.0,
        milestones: Sequence[float] = (),
        gamma: float = 0.1,
    ):
        who = f'LossWeightHook for {term!r}'
        if schedule not in self.SCHEDULES:
            raise ValueError(f'{who}: unknown schedule {schedule!r}, expected one of {", ".join(self.SCHEDULES)}')
        if by not in ('iter', 'epoch'):
            raise ValueError(f"{who}: by must be 'iter' or 'epoch', got {by!r}")
        if schedule in ('linear', 'cosine', 'stop') and end is None:
            raise ValueError(f'{who}: the schedule {schedule!r} needs end')
        if schedule == 'step' and not milestones:
            raise ValueError(f'{who}: the schedule step needs milestones')
        for name, value in dict(start=start, stop=stop, factor=factor, gamma=gamma, begin=begin).items():
            if not math.isfinite(value) or value < 0:
                raise ValueError(f'{who}: {name} must be 0 or above, got {value}')
        self.term, self.schedule, self.by = term, schedule, by
        self.begin, self.end, self.milestones = begin, end, list(milestones)
        self.start, self.stop, self.factor, self.gamma = start, stop, factor, gamma
        self.total = math.inf

    def before_train(self, runner) -> None:
        terms = distiller_of(runner, 'LossWeightHook').terms
        if self.term not in terms:
            raise KeyError(f'LossWeightHook: unknown term {self.term!r}, the terms are {", ".join(terms)}')
        others = [h for h in runner.hooks if isinstance(h, LossWeightHook) and h.term == self.term and h is not self]
        if others:
            raise ValueError(f'LossWeightHook: the term {self.term!r} has {len(others) + 1} schedules; keep one')
        self.total = runner.max_iters / (1 if self.by == 'iter' else epoch_length(runner))
        begin, end = self._time(self.begin), self._time(self.end)
        if end is not None and end <= begin:
            raise ValueError(f'LossWeightHook for {self.term!r}: end ({end:g}) must come after begin ({begin:g})')

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        time = runner.iter if self.by == 'iter' else runner.iter // epoch_length(runner)
        term = distiller_of(runner, 'LossWeightHook').terms[self.term]
        term.scale = self.factor_at(time)
        name = self.term.removeprefix('loss_')
        runner.message_hub.update_scalar(f'train/weight_{name}', term.weight * term.scale)

    def factor_at(self, time: float) -> float:
        """The factor at a time, in units of ``by``; parts of the training are known once it has begun."""
        begin, end = self._time(self.begin), self._time(self.end)
        if self.schedule == 'constant':
            return self.factor
        if self.schedule == 'step':
            return self.gamma ** bisect_right(sorted(map(self._time, self.milestones)), time)
        if self.schedule == 'stop':
            return 1.0 if time < end else 0.0
        part = min(max((time - begin) / (end - begin), 0.0), 1.0)
        if self.schedule == 'linear':
            return self.start + (self.stop - self.start) * part
        return self.stop + (self.start - self.stop) * (1 + math.cos(math.pi * part)) / 2

    def _time(self, value: float | None) -> float | None:
        return value * self.total if isinstance(value, float) and 0 < value < 1 else value


@HOOKS.register_module()
class ConnectorWarmupHook(Hook):
    """Trains the connectors alone at first: the student's weights stand still, so that it is not pulled by random ones.

    Until ``end`` the student's parameters are put back after every update, and what the optimizer remembers of them is
    forgotten when the warm-up is over. BatchNorm's running statistics move, as in the authors' code; so do schedules.
    With gradient accumulation, let it end with an update.

    Args:
        end: of the warm-up, in units of ``by``; a float between 0 and 1 is a part of the whole training.
        by: 'iter', or 'epoch': a pass over the training data, in iteration-based loops too.
    Raises:
        ValueError: an unknown unit, a warm-up that is not above 0, or terms without connectors to train.
    Source: the first epoch of OFD's segmentation recipe (Heo et al., ICCV 2019, authors' code).
    """

    priority = 'VERY_HIGH'

    def __init__(self, end: float = 1, by: str = 'epoch'):
        if by not in ('iter', 'epoch'):
            raise ValueError(f"ConnectorWarmupHook: by must be 'iter' or 'epoch', got {by!r}")
        if not end > 0:
            raise ValueError(f'ConnectorWarmupHook: end must be above 0, got {end}')
        self.end, self.by = end, by
        self._last = 0
        self._before: list[tuple[torch.nn.Parameter, Tensor]] = []

    def before_train(self, runner) -> None:
        model = distiller_of(runner, 'ConnectorWarmupHook')
        if not any(p.requires_grad for p in model.terms.parameters()):
            raise ValueError(
                'ConnectorWarmupHook: no term has connectors to train; give one connector=dict(type=...), or take the '
                'hook away'
            )
        unit = 1 if self.by == 'iter' else epoch_length(runner)
        part = isinstance(self.end, float) and self.end < 1
        self._last = math.ceil(self.end * (runner.max_iters if part else unit))
        if self._last >= runner.max_iters:
            raise ValueError(
                f'ConnectorWarmupHook: its {self._last} iterations are all of the training ({runner.max_iters}), and '
                'the student would never be trained; make end smaller'
            )

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter < self._last:
            student = distiller_of(runner, 'ConnectorWarmupHook').student
            self._before = [(p, p.detach().clone()) for p in student.parameters() if p.requires_grad]

    @torch.no_grad()
    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None) -> None:
        for parameter, value in self._before:
            parameter.copy_(value)
        if self._before and runner.iter + 1 >= self._last:
            for parameter, _ in self._before:
                runner.optim_wrapper.optimizer.state.pop(parameter, None)
        self._before = []


def epoch_length(runner) -> int:
    """Iterations in a pass over the training data, by all ranks together."""
    loader = runner.train_dataloader
    if isinstance(loader.sampler, InfiniteSampler):
        # Its length is the whole data set's, whatever the number of ranks.
        return max(1, math.ceil(len(loader.dataset) / (loader.batch_size * get_world_size())))
    return max(1, len(loader))


@HOOKS.register_module()
class LipschitzMonitorHook(Hook):
    """Logs the Lipschitz constants of both nets, layer by layer, and each term's share of the total loss.

    Scalars, in the log and every backend of the Visualizer: ``sigma_student/a-b`` of the raw student taps,
    ``sigma_connected/a-b`` after the connectors of ``term``, ``sigma_teacher/a-b`` (means over the batch of
    :func:`~lckd_mm.functional.transmitting_norm`), ``sigma_gap`` (mean over layers and samples of the raw
    :func:`~lckd_mm.functional.lipschitz_gap`), and ``share_<method>``, in parts of 1.

    Args:
        on: names of taps, in order of depth; by default those of ``term``.
        term: the term whose connectors are looked at, if it is there.
        interval: in iterations.
        gap: of ``sigma_gap``.
    """

    def __init__(
        self,
        on: Sequence[str] | None = None,
        term: str = 'loss_lipschitz',
        interval: int = 50,
        gap: str = 'log',
    ):
        if gap not in GAPS:
            raise ValueError(f'LipschitzMonitorHook: unknown gap {gap!r}, expected one of {", ".join(GAPS)}')
        if interval < 1:
            raise ValueError(f'LipschitzMonitorHook: interval must be at least 1, got {interval}')
        self.on, self.term, self.interval, self.gap = on, term, interval, gap
        self._scalars: dict[str, float] = {}

    def before_train(self, runner) -> None:
        model = distiller_of(runner, 'LipschitzMonitorHook')
        if self.on is None:
            if self.term not in model.terms:
                raise KeyError(
                    f'LipschitzMonitorHook: no term {self.term!r}, so say which taps to look at with '
                    "on=['stage1', 'stage2', …]"
                )
            self._names = [*zip(model.terms[self.term].student_names, model.terms[self.term].teacher_names)]
        else:
            self._names = [(name, name) for name in self.on]
        for side, taps in enumerate((model.student_taps, model.teacher_taps)):
            for names in self._names:
                if names[side] not in taps.addresses:
                    raise KeyError(f'LipschitzMonitorHook: unknown {taps.role} tap {names[side]!r}')
        if len(self._names) < 2:
            raise ValueError('LipschitzMonitorHook: needs at least two taps')

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        model = distiller_of(runner, 'LipschitzMonitorHook')
        if self.every_n_train_iters(runner, self.interval) or runner.iter == 0:
            model.observers.append(self._observe)
            self._parse = model.parse_losses

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None) -> None:
        model = distiller_of(runner, 'LipschitzMonitorHook')
        if self._observe in model.observers:
            model.observers.remove(self._observe)
        for name, value in self._scalars.items():
            runner.message_hub.update_scalar(f'train/{name}', value)
        self._scalars = {}

    @torch.no_grad()
    def _observe(self, student: dict, teacher: dict, connected: dict, losses: dict) -> None:
        after = connected.get(self.term, {})
        gaps = []
        for (s1, t1), (s2, t2) in pairwise(self._names):
            raw, target = transmitting_norm(student[s1], student[s2]), transmitting_norm(teacher[t1], teacher[t2])
            gaps.append(lipschitz_gap(raw, target, self.gap).mean())
            pair = f'{s1}-{s2}'
            self._scalars[f'sigma_student/{pair}'] = raw.mean().item()
            self._scalars[f'sigma_teacher/{pair}'] = target.mean().item()
            if s1 in after and s2 in after:
                sigma = transmitting_norm(after[s1], after[s2])
                self._scalars[f'sigma_connected/{pair}'] = sigma.mean().item()
        self._scalars['sigma_gap'] = torch.stack(gaps).mean().item()
        total, logged = self._parse(losses)
        for name in connected:
            self._scalars[f'share_{name.removeprefix("loss_")}'] = float(logged[name]) / max(float(total), 1e-12)


@HOOKS.register_module()
class TeacherCheckHook(Hook):
    """Validates the teacher once before training, on the run's own validation set, and logs it beside the student.

    The metrics stand in the log, and in the Visualizer as ``teacher/<metric>`` at each of the student's validations.

    Args:
        at_least: metric to value; ValueError before the first iteration where the teacher does not reach it.
    """

    priority = 'LOW'

    def __init__(self, at_least: dict[str, float] | None = None):
        self.at_least = at_least or {}
        self.metrics: dict[str, float] = {}

    def before_train(self, runner) -> None:
        model = distiller_of(runner, 'TeacherCheckHook')
        if runner.val_loop is None:
            raise ValueError('TeacherCheckHook: the config has no val_dataloader to check the teacher on')
        loader, evaluator = runner.val_loop.dataloader, runner.val_loop.evaluator
        kept = loader._iterator
        with preserved_rng():
            for batch in loader:
                evaluator.process(model.teacher.predict(batch, model.data_preprocessor), batch)
            self.metrics = dict(evaluator.evaluate(len(loader.dataset)))
        # A persistent iterator left behind would draw one random number fewer later on.
        loader._iterator = kept
        runner.logger.info('teacher: ' + ', '.join(f'{k} {v}' for k, v in self.metrics.items()))
        for name, value in self.at_least.items():
            if name not in self.metrics:
                raise KeyError(f'TeacherCheckHook: no metric {name!r}, there are {", ".join(self.metrics)}')
            if not self.metrics[name] >= value:
                raise ValueError(
                    f'TeacherCheckHook: the teacher reaches {name} {self.metrics[name]}, below the {value} asked for; '
                    'is its checkpoint the right one for this data set?'
                )

    def after_val_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        shared = {k: v for k, v in self.metrics.items() if k in (metrics or {})}
        if shared:
            both = ', '.join(f'{k} {v} (student {metrics[k]})' for k, v in shared.items())
            runner.logger.info(f'teacher: {both}')
            runner.visualizer.add_scalars({f'teacher/{k}': v for k, v in shared.items()}, step=runner.iter)


@HOOKS.register_module()
class PredictionHook(Hook):
    """Pictures of a few validation images as training goes: input, truth, teacher, student, side by side.

    Written through the Visualizer as ``prediction_<index>`` (a PNG each in ``vis_data/vis_image``; TensorBoard too),
    before every ``interval``-th validation and with the weights that are validated (EMA's where there is EMA).

    Args:
        indices: of the validation set's images. interval: in validations.
    """

    priority = 'LOW'

    def __init__(self, indices: Sequence[int] = (0, 1, 2, 3), interval: int = 1):
        self.indices, self.interval = list(indices), interval
        self._count = 0

    @master_only
    def before_val_epoch(self, runner) -> None:
        self._count += 1
        if (self._count - 1) % self.interval:
            return
        model = distiller_of(runner, 'PredictionHook')
        dataset = runner.val_loop.dataloader.dataset
        for index in self.indices:
            if not 0 <= index < len(dataset):
                raise ValueError(f'PredictionHook: no image {index}, the validation set has {len(dataset)}')
            with preserved_rng(), eval_mode(model):
                batch = pseudo_collate([dataset[index]])
                truth = batch['data_samples'][0]
                student = model.test_step(batch)[0]
                teacher = model.teacher.predict(pseudo_collate([dataset[index]]), model.data_preprocessor)[0]
            image = _original_image(truth, batch['inputs'][0])
            draw = _DRAW[host_of(model.student)]
            panels = {
                'input': image,
                'truth': draw(runner, image, truth, True),
                'teacher': draw(runner, image, teacher, False),
                'student': draw(runner, image, student, False),
            }
            runner.visualizer.add_image(f'prediction_{index}', side_by_side(panels), step=runner.iter)


def _original_image(sample: Any, inputs: Tensor) -> np.ndarray:
    """RGB, (H, W, 3), uint8, at the size of the file, in which hosts give their predictions."""
    image = cv2.imread(sample.img_path) if sample.get('img_path') else None
    if image is None:
        image = inputs.permute(1, 2, 0).numpy().astype(np.uint8)
    return np.ascontiguousarray(image[..., ::-1])


def _draw_segmentation(runner, image: np.ndarray, sample: Any, truth: bool) -> np.ndarray:
    labels = (sample.gt_sem_seg if truth else sample.pred_sem_seg).data[0].cpu().numpy()
    palette = np.array(runner.val_loop.dataloader.dataset.metainfo['palette'], np.uint8)
    return overlay_labels(image, labels, palette)


def overlay_labels(image: np.ndarray, labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Labels in their colours over an image, half and half; background and ignored pixels show the image dimmed."""
    if labels.shape != image.shape[:2]:
        labels = cv2.resize(labels.astype(np.uint8), image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    colours = np.zeros_like(image)
    known = labels < len(palette)
    colours[known] = palette[labels[known]]
    return (0.4 * image + 0.6 * colours).astype(np.uint8)


def _draw_detection(runner, image: np.ndarray, sample: Any, truth: bool) -> np.ndarray:
    sample = sample.clone().cpu()
    if truth and not isinstance(sample.gt_instances.bboxes, Tensor):
        # Data sets give their boxes wrapped; the host draws plain ones.
        sample.gt_instances.bboxes = sample.gt_instances.bboxes.tensor
    runner.visualizer.add_datasample(
        'prediction', image, sample, draw_gt=truth, draw_pred=not truth, pred_score_thr=0.3, show=False,
        out_file=None,
    )  # fmt: skip
    return runner.visualizer.get_image()


def _draw_classification(runner, image: np.ndarray, sample: Any, truth: bool) -> np.ndarray:
    label = int((sample.gt_label if truth else sample.pred_label).flatten()[0])
    classes = runner.val_loop.dataloader.dataset.metainfo.get('classes')
    drawn = cv2.resize(image, None, fx=4, fy=4, interpolation=cv2.INTER_NEAREST) if max(image.shape) < 64 else image
    text = str(classes[label]) if classes else str(label)
    return cv2.putText(drawn.copy(), text, (2, drawn.shape[0] - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 0), 1)


_DRAW = {'mmseg': _draw_segmentation, 'mmdet': _draw_detection, 'mmpretrain': _draw_classification}


def side_by_side(panels: dict[str, np.ndarray], height: int = 192) -> np.ndarray:
    """Titled panels of one height in a row, RGB; small images are enlarged."""
    height = max(height, *(p.shape[0] for p in panels.values()))
    columns = []
    for title, panel in panels.items():
        width = round(panel.shape[1] * height / panel.shape[0])
        body = cv2.resize(panel, (width, height), interpolation=cv2.INTER_NEAREST)
        head = np.full((20, width, 3), 255, np.uint8)
        cv2.putText(head, title, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
        columns.append(np.pad(np.concatenate([head, body]), ((0, 0), (0, 4), (0, 0)), constant_values=255))
    return np.concatenate(columns, 1)
