"""Distiller: turns a batch into a loss dict in one method, :meth:`Distiller.loss`."""

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from mmengine.dist import broadcast
from mmengine.logging import print_log
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from ..contexts import Moment, preserved_rng
from ..hosts import build_named_model, own_losses
from ..registry import MODELS
from .build import build_objective, inherited
from .dry_run import MadeUpImage, Taps, dry_terms, merge_taps, trace_taps
from .regions import noted_regions
from .student import TERM_SEED, StudentModel, stored
from .teacher import FrozenTeacher
from .term import Batch, Term


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
        teacher: ``dict(model=…, checkpoint=…, bn='eval', allow=[])``, and what makes it faster: ``precision``,
            ``channels_last``, ``fold_bn``; see :class:`~lckd_mm.distillation.FrozenTeacher`.
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
        teacher: dict,
        terms: dict[str, dict],
        taps: Taps = None,
        student_taps: Taps = None,
        teacher_taps: Taps = None,
        dry_run_size: int | tuple[int, int] | None = None,
        inherit: Sequence[str] = (),
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | None = None,
    ):
        if not isinstance(student, Mapping):
            raise TypeError(f'Distiller: student must be a model dict, got {type(student).__name__}')
        if not isinstance(teacher, Mapping):
            raise TypeError('Distiller: teacher must be dict(model=…, checkpoint=…)')
        known = inspect.signature(FrozenTeacher).parameters
        if 'model' not in teacher or set(teacher) - set(known):
            raise KeyError(
                f'teacher: expected the keys {", ".join(known)}, model at least, got {", ".join(map(str, teacher))}'
            )
        terms = inherited(terms, 'Distiller')
        # The student first: nothing else may draw random numbers before or while it is built.
        net = build_named_model(student, 'student', preprocessor=data_preprocessor)
        image = MadeUpImage.of('Distiller', dry_run_size, [net])
        super().__init__(net, init_cfg)
        self._image = image
        with preserved_rng(torch.initial_seed() + TERM_SEED):
            # A plain attribute, not a submodule.
            object.__setattr__(self, 'teacher', FrozenTeacher(**teacher))
            self.student_taps = merge_taps('student', net, taps, student_taps, image.size)
            with DefaultScope.overwrite_default_scope(self.teacher.scope):
                self.teacher_taps = merge_taps('teacher', self.teacher.model, taps, teacher_taps, image.size)
            self._trace(later=True)
            self.terms = build_objective(terms, (self.student_taps, self.teacher_taps), net)
            self.terms.bind(self.teacher.model)
            dry_terms(self.terms, net, image, [self.student_taps])
        self.inherit = [inherit] if isinstance(inherit, str) else list(inherit)
        for path in self.inherit:
            self._common_tensors(path)
        self.teacher.match_inputs(net.data_preprocessor)
        #: Called after the loss, with all taps recorded, as observer(student features, teacher features, the student's
        #: connected features by term and tap, losses); see LipschitzMonitorHook. Idle terms connect no features.
        self.observers: list[Callable[[dict, dict, dict, dict], None]] = []
        self._ready, self._idle = False, False

    def _trace(self, later: bool = False) -> None:
        with DefaultScope.overwrite_default_scope(self.teacher.scope):
            trace_taps(self.teacher_taps, self.teacher.model, self._image, later)
        trace_taps(self.student_taps, self.student, self._image, later)

    def complete(self) -> None:
        """Trace, on the device of the training, the taps that were left open while building.

        Raises:
            ValueError: a tap is not reached there either.
        """
        if len(self.student_taps.traces) < len(self.student_taps.addresses) or (
            len(self.teacher_taps.traces) < len(self.teacher_taps.addresses)
        ):
            self._trace()
            self.terms.bind(self.teacher.model)

    def init_weights(self) -> None:
        """Call the student's own init_weights, then load the teacher; Runner calls this before training."""
        self.student.init_weights()
        with preserved_rng():
            self.teacher.load()
        self.terms.bind(self.teacher.model)
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
        if not self.teacher.loaded:
            raise RuntimeError('Distiller: the teacher is not loaded; call init_weights() before training')
        if not self._ready:
            self._check_ready()
        idle = self.terms.idle
        if idle != self._idle:
            off = 'every weight is 0, so the teacher does not run for the terms; they add 0 to the loss, not computed'
            print_log(f'Distiller: {off if idle else "the teacher runs, and the terms are computed"}', logger='current')
            self._idle = idle
        student_names, teacher_names = self._recorded()
        # Only the terms' taps need a gradient: an observer may read a frozen stage.
        trained = self.terms.used()[0] if torch.is_grad_enabled() else []
        moment = Moment(inputs.device) if self.terms.replays else None
        # The teacher first: its temporary memory is then free before the student's activations are kept.
        t = {}
        if teacher_names:
            t = self.teacher(
                self.teacher_taps,
                teacher_names,
                inputs,
                data_samples,
                parts=self.terms.parts(),
                judged=self.terms.judged,
            )
        with (
            noted_regions(self.student, self.terms.region_heads()) as regions,
            self.student_taps.record(self.student, student_names, require_grad=trained) as s,
        ):
            own = own_losses(self.student, inputs, data_samples)
        replay, reuse = partial(self._replay, moment, data_samples), partial(self.teacher.reuse, self.teacher_taps)
        score = partial(self.teacher.score, self.teacher_taps, regions)
        if idle:
            losses, connected = self.terms.zeros(own, inputs.device), {}
        else:
            losses, connected = self.terms(
                Batch(s, t, inputs, data_samples, own, replay, reuse, score, self.teacher.judge, regions),
                self.training and torch.is_grad_enabled(),
            )
        self.teacher.forget()
        for observer in self.observers:
            observer(s, t, {name: features for name, (features, _) in connected.items()}, own | losses)
        return own | losses

    def _replay(
        self,
        moment: Moment,
        data_samples: list | None,
        inputs: Tensor,
        student_names: list[str],
        teacher_names: list[str],
    ) -> tuple[dict, dict]:
        """Run both nets again on other images of the same samples, without a side effect on the student or training."""
        with moment.again(self.student):
            t = self.teacher(self.teacher_taps, teacher_names, inputs, data_samples, inputs.requires_grad)
            gradient = torch.is_grad_enabled()
            with self.student_taps.record(self.student, student_names, require_grad=gradient, stop=True) as s:
                self.student(inputs, data_samples, mode='tensor')
        return s, t

    def match_classes(self, names: list[str] | None) -> None:
        """Match the teacher's classes with the student's, of these names, in every term that compares class scores.

        :class:`~lckd_mm.hooks.DistillationHook` calls it before the first iteration, with the training data's names.
        """
        for term in self.terms.values():
            term.match_classes(names, self.teacher.classes)
            if term.match is not None:
                term.bind(self.teacher.model)

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
        # The teacher is not a submodule, but must follow the student to its device.
        if 'teacher' in self.__dict__:
            self.teacher.move(fn)
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
        self.teacher_taps.check_paths(self.teacher.model)
        self.complete()
        for name, term in self.terms.items():
            if term.match is not None and not term.match.matched:
                raise ValueError(
                    f'term {name!r}: its classes are matched by name before the first iteration; add '
                    "default_hooks=dict(distillation=dict(type='lckd_mm.DistillationHook')), as tools/train.py does"
                )
            for tap, connector in term.waiting():
                raise ValueError(
                    f'term {name!r}, tap {tap!r}: {type(connector).__name__} needs training images before the first '
                    "iteration; add default_hooks=dict(distillation=dict(type='lckd_mm.DistillationHook')), as "
                    'tools/train.py does'
                )
        self._ready = True

    def _recorded(self) -> tuple[list[str], list[str]]:
        """The student and teacher taps to record: all for an observer, else the terms'; none while these are idle."""
        if self.observers:
            return list(self.student_taps.addresses), list(self.teacher_taps.addresses)
        return ([], []) if self.terms.idle else self.terms.used()
