"""Hooks that only observe: the Lipschitz monitor, the teacher's check, the teacher as a metric's reference."""

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from mmengine.hooks import Hook

from .. import arguments
from ..contexts import preserved_rng
from ..distillation.shares import sum_of
from ..distillation.side import levels
from ..evaluation.metrics import ClassBiasMetric
from ..functional import transmitting_norm
from ..functional.lipschitz import GAPS, lipschitz_gap
from ..registry import HOOKS
from .distillation import distiller_of


@HOOKS.register_module()
class LipschitzMonitorHook(Hook):
    """Logs the Lipschitz constants of both nets, layer by layer.

    Scalars, in the log and every backend of the Visualizer: batch means of
    :func:`~lckd_mm.functional.transmitting_norm`, as ``sigma_student/a-b`` of the raw student taps,
    ``sigma_connected/a-b`` after the connectors of ``term`` and ``sigma_teacher/a-b``; and ``sigma_gap``, the mean of
    :func:`~lckd_mm.functional.lipschitz_gap` of the raw taps.

    Args:
        on: tap names, in order of depth; by default those of ``term``.
        term: the term whose connectors are observed, if it exists.
        interval: in iterations.
        gap: the kind of gap in ``sigma_gap``.
    Example: ``custom_hooks = [dict(type='lckd_mm.LipschitzMonitorHook', on=['stage2', 'stage3', 'stage4'])]``
    """

    def __init__(
        self, on: Sequence[str] | None = None, term: str = 'loss_lipschitz', interval: int = 50, gap: str = 'log'
    ):
        self.on, self.term = on, term
        self.interval = arguments.integer('LipschitzMonitorHook', 'interval', interval)
        self.gap = arguments.choice('LipschitzMonitorHook', 'gap', gap, GAPS)
        self._scalars: dict[str, float] = {}

    def before_train(self, runner) -> None:
        model = distiller_of(runner, 'LipschitzMonitorHook')
        both = model.student_taps, model.teacher_taps  # of one teacher
        if self.on is None:
            term = model.terms[arguments.choice('LipschitzMonitorHook', 'term', self.term, model.terms)]
            self._names = [*zip(term.student.names, term.teacher.names)]
        else:
            for taps in both:
                for name in self.on:
                    arguments.choice('LipschitzMonitorHook: on', f'{taps.role} tap', name, taps.addresses)
            self._names = [(name, name) for name in self.on]
        if len(self._names) < 2:
            raise ValueError("LipschitzMonitorHook: needs two taps or more, as in on=['stage1', 'stage2']")

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        model = distiller_of(runner, 'LipschitzMonitorHook')
        if self.every_n_train_iters(runner, self.interval) or runner.iter == 0:
            model.observers.append(self._observe)

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None) -> None:
        model = distiller_of(runner, 'LipschitzMonitorHook')
        if self._observe in model.observers:
            model.observers.remove(self._observe)
            # While every weight is 0 nothing is connected: what was measured before is not logged on.
            for pair in pairwise(name for name, _ in self._names):
                runner.message_hub.log_scalars.pop(f'train/sigma_connected/{"-".join(pair)}', None)
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
                self._scalars[f'sigma_connected/{pair}'] = transmitting_norm(after[s1], after[s2]).mean().item()
        self._scalars['sigma_gap'] = torch.stack(gaps).mean().item()


@HOOKS.register_module()
class GradientShareHook(Hook):
    r"""Logs each loss's share of the gradient at one of the student's taps, where the losses meet.

    .. math:: g_i = \lVert \nabla_x \ell_i \rVert_2 \Bigm/ \sum_j \lVert \nabla_x \ell_j \rVert_2

    for each weighted term (``gradient_<method>``) and the sum of the student's own losses (``gradient_task``). A term
    can be half of the loss and a hundredth of the gradient. Each logged batch costs a backward pass down to the tap for
    each loss.

    Args:
        tap: a student's tap, such as the deepest stage of the backbone that a term reads. interval: in iterations.
    Example: ``custom_hooks = [dict(type='lckd_mm.GradientShareHook', tap='stage4')]``
    """

    def __init__(self, tap: str, interval: int = 50):
        self.tap = arguments.string('GradientShareHook', 'tap', tap)
        self.interval = arguments.integer('GradientShareHook', 'interval', interval)
        self._scalars: dict[str, float] = {}

    def before_train(self, runner) -> None:
        model = distiller_of(runner, 'GradientShareHook')
        self._terms, taps = list(model.terms), model.student_taps
        arguments.choice('GradientShareHook', 'tap', self.tap, taps.addresses)
        if taps.traces[self.tap].order is not None:
            raise ValueError(
                f'GradientShareHook: the axes of tap {self.tap!r} are rearranged, which the gradient of the '
                'task does not pass; choose a tap that is a map (B, C, H, W) in the net itself'
            )

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        if self.every_n_train_iters(runner, self.interval) or runner.iter == 0:
            distiller_of(runner, 'GradientShareHook').observers.append(self._observe)

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None) -> None:
        model = distiller_of(runner, 'GradientShareHook')
        if self._observe in model.observers:
            model.observers.remove(self._observe)
        for name, value in self._scalars.items():
            runner.message_hub.update_scalar(f'train/gradient_{name}', value)
        self._scalars = {}

    def _observe(self, student: dict, teacher: dict, connected: dict, losses: dict) -> None:
        features = levels(student[self.tap])
        if not features[0].requires_grad:
            raise ValueError(f'GradientShareHook: tap {self.tap!r} lies in a frozen part; choose one that is trained')
        values = {name.removeprefix('loss_'): losses[name] for name in self._terms}
        values['task'] = sum_of({name: value for name, value in losses.items() if name not in self._terms})
        norms = {}
        for name, value in values.items():
            grads = []
            if value.requires_grad:  # a term whose weight is 0 need not
                grads = torch.autograd.grad(value, features, retain_graph=True, allow_unused=True)
            norms[name] = sum(grad.double().square().sum().item() for grad in grads if grad is not None) ** 0.5
        total = sum(norms.values())
        self._scalars = {name: norm / total if total else 0.0 for name, norm in norms.items()}


@HOOKS.register_module()
class TeacherCheckHook(Hook):
    """Validates the teacher once before training, on the run's validation set, and logs it beside the student.

    The metrics are logged, and written to the Visualizer as ``teacher/<metric>`` at each validation of the student.

    Example: ``custom_hooks = [dict(type='lckd_mm.TeacherCheckHook')]``
    """

    priority = 'LOW'

    def __init__(self):
        self.metrics: dict[str, float] = {}

    def before_train(self, runner) -> None:
        model = distiller_of(runner, 'TeacherCheckHook')
        model.teacher.check_predicts('TeacherCheckHook')
        if runner.val_loop is None:
            raise ValueError('TeacherCheckHook: the config has no val_dataloader to check the teacher on')
        loader, evaluator = runner.val_loop.dataloader, runner.val_loop.evaluator
        kept = loader._iterator
        with preserved_rng():
            for batch in loader:
                samples = model.teacher.predict(batch, model.data_preprocessor)
                for metric in _teacher_biased(evaluator):
                    metric.add_reference(samples)
                evaluator.process(samples, batch)
            self.metrics = dict(evaluator.evaluate(len(loader.dataset)))
        # A persistent iterator left behind would make later validations draw one random number fewer.
        loader._iterator = kept
        runner.logger.info('teacher: ' + ', '.join(f'{k} {v}' for k, v in self.metrics.items()))

    def after_val_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        shared = {k: v for k, v in self.metrics.items() if k in (metrics or {})}
        if shared:
            both = ', '.join(f'{k} {v} (student {metrics[k]})' for k, v in shared.items())
            runner.logger.info(f'teacher: {both}')
            runner.visualizer.add_scalars({f'teacher/{k}': v for k, v in shared.items()}, step=runner.iter)


@HOOKS.register_module()
class TeacherReferenceHook(Hook):
    """Passes the teacher's predictions to the metrics that compare with them, during the first validation.

    These are :class:`~lckd_mm.evaluation.metrics.ClassBiasMetric` with ``reference='teacher'``.

    Raises:
        ValueError: the validation has no such metric.
    Example: ``custom_hooks = [dict(type='lckd_mm.TeacherReferenceHook')]``
    """

    def before_train(self, runner) -> None:
        distiller_of(runner, 'TeacherReferenceHook').teacher.check_predicts('TeacherReferenceHook')
        if runner.val_loop is None or not _teacher_biased(runner.val_loop.evaluator):
            raise ValueError(
                "TeacherReferenceHook: the val_evaluator has no lckd_mm.ClassBiasMetric with reference='teacher'; add "
                'one, or remove the hook'
            )
        self._complete = False

    def before_val_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        if self._complete:
            return
        model = distiller_of(runner, 'TeacherReferenceHook')
        with preserved_rng():
            samples = model.teacher.predict(copy.deepcopy(data_batch), model.data_preprocessor)
        for metric in _teacher_biased(runner.val_loop.evaluator):
            metric.add_reference(samples)

    def after_val_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        self._complete = True


def _teacher_biased(evaluator: Any) -> list[ClassBiasMetric]:
    """An evaluator's metrics that compare with the teacher."""
    metrics = getattr(evaluator, 'metrics', [])
    return [metric for metric in metrics if isinstance(metric, ClassBiasMetric) and metric.of_teacher]
