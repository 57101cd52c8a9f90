"""Distiller: turns a batch into a loss dict in one method, :meth:`Distiller.loss`."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from mmengine.dist import broadcast
from mmengine.logging import print_log
from torch import Tensor, nn

from .. import arguments
from ..contexts import Moment, preserved_rng
from ..hosts import build_named_model, own_losses
from ..registry import MODELS
from ..taps import FeatureTaps
from .average import AveragedTeacher
from .build import build_objective, check_stored, check_untrained, inherited
from .dry_run import MadeUpImage, Taps, dry_terms, merge_taps, trace_taps
from .queries import check_matched
from .regions import noted_regions
from .side import detached
from .stored import StoredTeacher
from .student import TERM_SEED, StudentModel, stored
from .teacher import FrozenTeacher
from .teachers import Teaching, named_in_errors, named_teachers, of_teachers
from .term import ITSELF, Batch, Key, Term


@MODELS.register_module()
class Distiller(StudentModel):
    """Wraps a host's model, unchanged, as the student, and adds distillation terms to its training loss.

    1. ``loss``: runs the frozen teacher and the student with its own loss on the same batch, and adds each term.
    2. ``predict``, ``tensor``, validation, test and export: the distiller behaves as the student.
    3. ``state_dict`` holds the student's own keys, without prefix, and nothing else. Connectors are stored beside it
       by :class:`~lckd_mm.hooks.DistillationHook`. The teacher is never stored.
    4. Unknown attributes are looked up on the student, so that the hosts' hooks and optimizer constructors find what
       they look for (``model.bbox_head``, ``backbone.`` in a parameter's name).
    5. With every weight 0, training is bit-identical to the student's own config.
    6. While the weights of all terms are 0, the teacher does not run for them, see :class:`~lckd_mm.distillation.Term`.

    Args:
        student: the student's model dict, as in its plain config.
        teacher: ``dict(model=…, checkpoint=…, bn='eval', allow=[])``, or any torch module by ``module=``, and what
            makes it faster: ``precision``, ``channels_last``, ``fold_bn``; see
            :class:`~lckd_mm.distillation.FrozenTeacher`. With ``stored=FOLDER`` its outputs are stored once and read
            from then on, see :class:`~lckd_mm.distillation.StoredTeacher`. ``dict(average=True)`` is the average of the
            student that mmengine's EMAHook keeps.
        terms: name to term, see :class:`~lckd_mm.distillation.Term`.
        taps: for both nets, a dict of tap name to address (:mod:`lckd_mm.taps`); or a preset that names each net's own
            (:mod:`lckd_mm.taps.presets`): 'backbone' its stages stage1, stage2, …, 'neck' its levels p3, p4, …,
            'logits' its class scores; or a list of these, such as ``['backbone', dict(logits='head.fc')]``.
        student_taps, teacher_taps: override ``taps`` for one net, name by name.
        dry_run_size: size of the made-up image on which both nets run while being built, to learn channels and calls:
            an integer, or height and width; by default the size the student's preprocessor pads to, else 224 x 224. It
            has the channels of the student's images.
        inherit: modules of the student, such as ``['neck', 'bbox_head']``, that start from the teacher's weights where
            names and shapes agree. The weights are copied after the student's own initialisation and after
            ``load_from``; a resumed run keeps its own.
        data_preprocessor: mmpretrain's top-level one; used if the student has none.
        teachers: in place of ``teacher``, name to teacher, each a dict as ``teacher`` with ``taps`` of its own. A term
            names its teacher by ``of='boxes'``, unless its taps are those of one alone. ``of=['boxes', 'scene']`` is
            a term of each, ``loss_kd_boxes`` and ``loss_kd_scene``, with half of the weight each: for KD and squared
            differences their gradient is that of the mean of the teachers' probabilities or features. A teacher whose
            terms all have the weight 0 does not run.
        task_weight: factor on the student's own losses, 0 included; an accuracy that they log stays as it is.
    Raises:
        ValueError, KeyError, FileNotFoundError, TypeError: for a wrong argument, in one sentence, before any training.
    Example:
        model=dict(
            type='lckd_mm.Distiller',
            student=_base_.model,
            teacher=dict(model='my_teacher.py', checkpoint='teacher.pth'),
            taps='logits',
            terms=dict(loss_kd=dict(loss=dict(type='lckd_mm.KDLoss'), on='logits')),
        )
    """

    def __init__(
        self,
        student: dict,
        teacher: dict | None = None,
        terms: dict[str, dict] | None = None,
        taps: Taps = None,
        student_taps: Taps = None,
        teacher_taps: Taps = None,
        dry_run_size: int | tuple[int, int] | None = None,
        inherit: Sequence[str] = (),
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | None = None,
        teachers: dict[str, dict] | None = None,
        task_weight: float = 1.0,
    ):
        if not isinstance(student, Mapping):
            raise TypeError(f'Distiller: student must be a model dict, got {type(student).__name__}')
        terms = inherited(terms, 'Distiller')
        given = named_teachers(teacher, teachers, terms, teacher_taps, inherit)
        terms = of_teachers(terms, list(given))
        # The student first: nothing else may draw random numbers before or while it is built.
        net = build_named_model(student, 'student', preprocessor=data_preprocessor)
        image = MadeUpImage.of('Distiller', dry_run_size, [net])
        super().__init__(net, init_cfg)
        self._image = image
        self.task_weight = arguments.number('Distiller', 'task_weight', task_weight, at_least=0)
        with preserved_rng(torch.initial_seed() + TERM_SEED):
            self.student_taps = merge_taps('student', net, taps, student_taps, image.size)
            #: Name to teacher; of one alone the name is None. A plain dict, no submodule.
            self.teachers: dict[str | None, Teaching] = {}
            for name, own in given.items():
                with named_in_errors(name):
                    self.teachers[name] = Teaching.build(name, own, net, taps, image)
            check_matched(terms, net, {name: one.teacher.model for name, one in self.teachers.items()})
            self._trace(later=True)
            both = {name: (self.student_taps, one.taps) for name, one in self.teachers.items()}
            both[ITSELF] = self.student_taps, self.student_taps
            self.terms = build_objective(terms, both, net)
            self._bind()
            for term in self.terms.values():
                taught = None if term.of == ITSELF else self.teachers[term.of].teacher
                if isinstance(taught, AveragedTeacher):
                    check_untrained(term)
                if isinstance(taught, StoredTeacher):
                    check_stored(term)
            shares = [name for name, term in self.terms.items() if term.running is not None]
            if self.task_weight == 0 and shares:
                raise ValueError(
                    f'term {shares[0]!r}: with task_weight=0 it would be a share of a loss of 0; give it a number'
                )
            dry_terms(self.terms, net, image, [self.student_taps])
        self.inherit = [inherit] if isinstance(inherit, str) else list(inherit)
        for path in self.inherit:
            self._common_tensors(path)
        for name, one in self.teachers.items():
            with named_in_errors(name):
                one.teacher.match_inputs(net.data_preprocessor)
        #: Called after the loss, with all taps recorded, as observer(student features, teacher features, the student's
        #: connected features by term and tap, losses); see LipschitzMonitorHook. Idle terms connect no features.
        self.observers: list[Callable[[dict, dict, dict, dict], None]] = []
        self._ready, self._idle = False, False
        #: The batch of the terms with images='unlabelled'; :class:`~lckd_mm.hooks.UnlabelledHook` sets it.
        self.unlabelled: dict | None = None

    @property
    def teacher(self) -> FrozenTeacher:
        """The teacher, where there is one.

        Raises:
            ValueError: there are several.
        """
        return self._only.teacher

    @property
    def teacher_taps(self) -> FeatureTaps:
        """The teacher's taps, where there is one; ValueError where there are several."""
        return self._only.taps

    @property
    def _only(self) -> Teaching:
        if len(self.teachers) != 1:
            names = f'the teachers {", ".join(map(repr, self.teachers))}' if self.teachers else 'no teacher'
            raise ValueError(f'Distiller: it has {names}, and what was asked for works with one alone')
        return next(iter(self.teachers.values()))

    def _trace(self, later: bool = False) -> None:
        for name, one in self.teachers.items():
            with named_in_errors(name):
                one.trace(self._image, later)
        trace_taps(self.student_taps, self.student, self._image, later)

    def _bind(self) -> None:
        for name, one in self.teachers.items():
            self.terms.bind(one.teacher.model, name)
        self.terms.bind(self.student, ITSELF)

    def follow_average(self, hooks: Sequence[Any]) -> None:
        """Let teachers that are the student's average take it from a run's hook."""
        for one in self.teachers.values():
            if isinstance(one.teacher, AveragedTeacher):
                one.teacher.follow(hooks, self.student)

    def complete(self) -> None:
        """Trace, on the device of the training, the taps that were left open while building.

        Raises:
            ValueError: a tap is not reached there either.
        """
        all_taps = [self.student_taps, *(one.taps for one in self.teachers.values())]
        if any(len(taps.traces) < len(taps.addresses) for taps in all_taps):
            self._trace()
            self._bind()

    def init_weights(self) -> None:
        """Call the student's own init_weights, then load the teachers; Runner calls this before training."""
        self.student.init_weights()
        for name, one in self.teachers.items():
            with preserved_rng(), named_in_errors(name):
                one.teacher.load()
        self._bind()
        self.copy_teacher_weights()
        # Runner broadcasts the state dict, which holds only the student.
        for tensor in self.terms.state_dict().values():
            broadcast(tensor)
        if self.terms.state_dict() and not self.state_is_stored:
            print_log(
                'Distiller: its connectors will be in no checkpoint, so that a resumed run would begin with new ones; '
                "add default_hooks=dict(distillation=dict(type='lckd_mm.DistillationHook')), as tools/train.py does",
                logger='current',
                level=logging.WARNING,
            )

    # Hooks added inside or after torch.compile do not fire, so this runs uncompiled under a compiled train_step.
    @torch.compiler.disable
    def loss(self, inputs: Tensor, data_samples: list | None = None) -> dict[str, Tensor]:
        """The student's own losses and every term. The features are freed when this returns.

        Raises:
            NonFiniteError: a term is nan or infinity; raised before any update, on all ranks together.
        """
        if not all(one.teacher.loaded for one in self.teachers.values()):
            raise RuntimeError('Distiller: the teacher is not loaded; call init_weights() before training')
        if not self._ready:
            self._check_ready()
        idle = self.terms.idle
        if idle != self._idle:
            off = 'every weight is 0, so the teacher does not run for the terms; they add 0 to the loss, not computed'
            print_log(f'Distiller: {off if idle else "the teacher runs, and the terms are computed"}', logger='current')
            self._idle = idle
        student_names = self._recorded()
        # Only the terms' taps need a gradient: an observer may read a frozen stage.
        trained = self.terms.used()[0] if torch.is_grad_enabled() else []
        moment = Moment(inputs.device) if self.terms.replays else None
        # The teacher first: its temporary memory is then free before the student's activations are kept.
        t = {name: self._taught(name, inputs, data_samples) for name in self.teachers}
        with (
            noted_regions(self.student, self.terms.region_heads()) as regions,
            self.student_taps.record(self.student, student_names, require_grad=trained) as s,
        ):
            own = self._weighted(own_losses(self.student, inputs, data_samples))
        if idle:
            losses, connected = self.terms.zeros(own, inputs.device), {}
        else:
            batches = {}
            for name, one in self.teachers.items():
                replay = partial(self._replay, one, moment, data_samples)
                reuse, score = partial(one.teacher.reuse, one.taps), partial(one.teacher.score, one.taps, regions)
                parts = replay, reuse, score, one.teacher.judge, regions
                batches[name] = Batch(s, t[name], inputs, data_samples, own, *parts)
            if itself := self.terms.used(ITSELF)[1]:
                taught = {name: detached(s[name]) for name in itself}
                batches[ITSELF] = Batch(s, taught, inputs, data_samples, own)
            batch = batches.pop(None, None) or Batch(s, {}, inputs, data_samples, own)
            others = {(name, False): of for name, of in batches.items()} | self._on_unlabelled()
            batch.others = {key: of for key, of in others.items() if of.teacher}
            losses, connected = self.terms(batch, self.training and torch.is_grad_enabled())
        for one in self.teachers.values():
            one.teacher.forget()
        for observer in self.observers:
            observer(
                s,
                next(iter(t.values())) if len(t) == 1 else t,
                {name: features for name, (features, _) in connected.items()},
                own | losses,
            )
        return own | losses

    def _on_unlabelled(self) -> dict[Key, Batch]:
        """The batches of the terms that read the unlabelled images, without those that rest."""
        keys = [(name, True) for name in (*self.teachers, ITSELF)]
        keys = [key for key in keys if not all(term.idle for term in self.terms.taught(*key))]
        if not keys:
            return {}
        data = self.data_preprocessor(self.unlabelled, True)
        inputs, samples = data['inputs'], data['data_samples']
        t = {}
        for name, _ in keys:
            if name != ITSELF:
                one = self.teachers[name]
                t[name] = one.teacher(one.taps, self.terms.used(name, True)[1], inputs, samples)
        trained, itself = self.terms.used(None, True)[0], self.terms.used(ITSELF, True)[1]
        names = list(dict.fromkeys(trained + itself))
        gradient = trained if torch.is_grad_enabled() else []
        with self.student_taps.record(self.student, names, require_grad=gradient, stop=True) as s:
            self.student(inputs, samples, mode='tensor')
        t[ITSELF] = {name: detached(s[name]) for name in itself}
        return {key: Batch(s, t[key[0]], inputs, samples) for key in keys}

    def _weighted(self, own: dict[str, Any]) -> dict[str, Any]:
        """The student's own losses, times their weight."""
        if self.task_weight == 1:
            return own
        scaled = {name: value for name, value in own.items() if 'loss' in name}
        scaled = {k: [self.task_weight * x for x in v] if isinstance(v, list) else self.task_weight * v
                  for k, v in scaled.items()}  # fmt: skip
        return own | scaled

    def _taught(self, name: str | None, inputs: Tensor, data_samples: list | None) -> dict[str, Any]:
        """A teacher's features: all for an observer, else those that its terms read; none while these are idle.

        Only what terms read is stored.
        """
        one, names = self.teachers[name], []
        if self.observers and not isinstance(one.teacher, StoredTeacher):
            names = list(one.taps.addresses)
        elif self.observers or not all(term.idle for term in self.terms.taught(name)):
            names = self.terms.used(name)[1]
        if not names:
            return {}
        parts, judged = self.terms.parts(name), self.terms.judged(name)
        return one.teacher(one.taps, names, inputs, data_samples, parts=parts, judged=judged)

    def _replay(
        self,
        one: Teaching,
        moment: Moment,
        data_samples: list | None,
        inputs: Tensor,
        student_names: list[str],
        teacher_names: list[str],
    ) -> tuple[dict, dict]:
        """Run both nets again on other images of the same samples, without a side effect on the student or training."""
        with moment.again(self.student):
            t = one.teacher(one.taps, teacher_names, inputs, data_samples, inputs.requires_grad)
            gradient = torch.is_grad_enabled()
            with self.student_taps.record(self.student, student_names, require_grad=gradient, stop=True) as s:
                self.student(inputs, data_samples, mode='tensor')
        return s, t

    def match_classes(self, names: list[str] | None) -> None:
        """Match the teacher's classes with the student's, of these names, in every term that compares class scores.

        :class:`~lckd_mm.hooks.DistillationHook` calls it before the first iteration, with the training data's names.
        """
        for term in self.terms.values():
            if term.of == ITSELF:
                continue
            teacher = self.teachers[term.of].teacher
            term.match_classes(names, teacher.classes)
            if term.match is not None:
                term.bind(teacher.model)

    def named_terms(self) -> dict[str, list[Term]]:
        """Term name to its terms; here one each."""
        return {name: [term] for name, term in self.terms.items()}

    def distillation_state(self) -> dict[str, Tensor]:
        """Connectors and losses' buffers, stored under a key of their own in the checkpoint."""
        return stored(self.terms)

    def load_distillation_state(self, state: dict[str, Tensor]) -> None:
        """Restore :meth:`distillation_state`; ValueError if it belongs to other terms."""
        try:
            self.terms.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f'Distiller: the stored connectors are of other terms than the config has: {error}'
            ) from error

    def _apply(self, fn, recurse: bool = True):
        # The teachers are no submodules, but must follow the student to its device.
        for one in self.__dict__.get('teachers', {}).values():
            one.teacher.move(fn)
        return super()._apply(fn, recurse)

    def copy_teacher_weights(self) -> None:
        """Copy the teacher's weights into the modules of ``inherit``, where names and shapes agree."""
        for path in self.inherit:
            agreeing = self._common_tensors(path)
            with torch.no_grad():
                for own, theirs in agreeing:
                    own.copy_(theirs)
            print_log(f'{path}: {len(agreeing)} tensors start from the teacher', logger='current')

    def _common_tensors(self, path: str) -> list[tuple[Tensor, Tensor]]:
        """Pairs of a module's tensors in the student and in the teacher that agree in name and shape."""
        states = []
        for role, net in (('student', self.student), ('teacher', self.teacher.model)):
            try:
                states.append(net.get_submodule(path).state_dict(keep_vars=True))
            except AttributeError:
                raise ValueError(f'inherit: no module {path!r} in the {role} {type(net).__name__}') from None
        own, theirs = states
        agreeing = [(own[key], theirs[key]) for key in own if key in theirs and own[key].shape == theirs[key].shape]
        if not any(tensor.dim() for tensor, _ in agreeing):
            raise ValueError(
                f"inherit: no tensor of the student's {path!r} has the name and shape of one of the teacher's; give "
                'both the same widths, or remove it'
            )
        return agreeing

    def _check_ready(self) -> None:
        # Checked again: the nets may have been compiled or changed since they were built.
        self.student_taps.check_paths(self.student)
        for one in self.teachers.values():
            one.taps.check_paths(one.teacher.model)
        self.complete()
        for name, term in self.terms.items():
            if term.unlabelled and self.unlabelled is None:
                raise ValueError(
                    f'term {name!r}: there are no unlabelled images; add '
                    "custom_hooks=[dict(type='lckd_mm.UnlabelledHook', dataset=…, batch_size=…)]"
                )
            if term.match is not None and not term.match.matched:
                raise ValueError(
                    f'term {name!r}: its classes are matched by name before the first iteration; add '
                    "default_hooks=dict(distillation=dict(type='lckd_mm.DistillationHook')), as tools/train.py does"
                )
            for tap, connector, _ in term.waiting():
                raise ValueError(
                    f'term {name!r}, tap {tap!r}: {type(connector).__name__} needs training images before the first '
                    "iteration; add default_hooks=dict(distillation=dict(type='lckd_mm.DistillationHook')), as "
                    'tools/train.py does'
                )
        self._ready = True

    def _recorded(self) -> list[str]:
        """The student's taps to record: all for an observer, else the terms'; none while these are idle."""
        if self.observers:
            return list(self.student_taps.addresses)
        if self.terms.idle:
            return []
        return list(dict.fromkeys(self.terms.used()[0] + self.terms.used(ITSELF)[1]))
