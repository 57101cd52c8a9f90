"""Term: one summand of the objective: select features, connect them, compare them, weight the result."""

import contextlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import arguments
from ..connectors import Connector
from ..contexts import untracked_statistics
from ..functional.shapes import same_shape
from ..hosts import owner_head, score_count, scores_classes
from ..losses.base import EXTRAS, Loss, PlainLoss
from ..registry import build_registered, registered_class
from ..taps import FeatureTaps
from .classes import BY_NAME, BY_POSITION, ClassMatch, check_names
from .judge import Judge
from .queries import judge_of
from .regions import RegionHead
from .shares import parse_share
from .side import Connected, Feature, Side, flat, levels

Features = Mapping[str, Feature]
_IMAGES = ('labelled', 'unlabelled')
#: What a term is of whose both sides are the student's.
ITSELF = 'student'
_ROLES = ('student', 'teacher')
_OF_LEVELS = (
    'give both encoders the same levels of the pyramid (backbone.out_indices, neck.num_outs, num_feature_levels, and '
    'num_levels in the layer_cfg of encoder and decoder), or match the predictions of both nets, by '
    'lckd_mm.MatchedQueryLoss'
)


#: The name of a teacher (None: the only one), and whether the images are the unlabelled ones.
Key = tuple[str | None, bool]


@dataclass(eq=False)
class Batch:
    """One batch as the terms see it: both nets' features by tap, and the extras that a loss may ask for by name."""

    student: Features
    teacher: Features
    inputs: Tensor | None = None
    data_samples: list | None = None
    #: The student's own losses.
    losses: Mapping[str, Any] = field(default_factory=dict)
    #: Maps (other images, student tap names, teacher tap names) to both nets' features, by rerunning both nets.
    replay: Callable[[Tensor, list[str], list[str]], tuple[Features, Features]] | None = None
    #: Maps (part of the teacher, its tap names to features, tap names) to the teacher's features, by rerunning the part
    #: with those features in the place of its own.
    reuse: Callable[[str, Features, list[str]], Features] | None = None
    #: Maps (term, tap names) to what the teacher's head makes of the regions that the student's head scored.
    regions: Callable[['Term', list[str]], Features] | None = None
    #: Maps (the teacher's judge, a memory) to what decoder and head make of it, and of the teacher's own.
    judge: Callable[[Judge, list[Tensor]], tuple[list[Tensor], list[Tensor]]] | None = None
    #: What the student's heads scored, see :func:`~lckd_mm.distillation.regions.noted_regions`.
    noted: Mapping[str, Tensor] = field(default_factory=dict)
    #: The batches that other terms see: of several teachers, and of unlabelled images; without those that rest.
    others: Mapping['Key', 'Batch'] = field(default_factory=dict)

    def of(self, term: 'Term') -> 'Batch | None':
        """The batch as a term sees it; None if its teacher rests."""
        return self.each().get(term.key)

    def each(self) -> dict['Key', 'Batch']:
        """The batches of all terms."""
        return {**({(None, False): self} if self.teacher else {}), **self.others}


class Waiting(NamedTuple):
    """A connector that needs training images, its teacher's tap, and the name of that teacher."""

    tap: str
    connector: Connector
    of: str | None


class Term(nn.Module):
    """One distillation term: ``weight * loss(connect(student taps), connect(teacher taps))``.

    Args:
        name: its key in the loss dict; starts with ``loss_``.
        taps: the traced taps of student and teacher; they give names, shapes and channels.
        net: the student; the loss may read settings from the head that owns the first tap.
        before: the earlier terms, whose connectors this one may borrow.
        loss: config of a registered loss; :class:`~lckd_mm.losses.Loss` says what it is given. A module that is not a
            Loss is taken as a loss of pairs.
        on: a tap's name, or a list of them, for both nets; ``student`` and ``teacher`` name them separately.
        weight: non-negative; or ``'start:0.5'``, the weight with which the term is half of the loss over the first 20
            batches; or ``'share:0.3'``, which keeps it at 30 % of the loss all the time (see
            :func:`~lckd_mm.distillation.shares.share_weights`). A weight of 0 multiplies and does not skip. Only while
            the weights of all terms are 0 (such as before a schedule sets in) are they not computed, and the teacher
            does not run: the log shows them as 0 and says so once, their parameters get gradients of 0, and what
            connectors and losses gather (statistics, memories) stands still. A share that is still measured is
            computed.
        connector: config of the student-side connector, or a list of configs, applied in order; one instance per tap.
            None compares the raw features. The name of another term borrows its connectors: the same features, computed
            once.
        teacher_connector: the same for the teacher's features; borrowed ones are detached.
        given: argument of the loss's forward to taps of the teacher, such as ``dict(scores='logits')``: features that
            the loss reads as they are, without connectors.
        reuse: taps of the teacher, as many as the student's. The student's connected features are put in their places,
            and the part of the teacher that holds them, such as ``bbox_head``, runs from there, frozen, to the taps
            ``teacher``: what the teacher makes of the student's features is compared with what it makes of its own. The
            connectors map to the features of these taps. A tap that is an input of the part, such as a stage that a
            decode head reads, is replaced for all of the part.
        regions: for two-stage detectors of mmdet: the taps lie in their RoI heads, and the teacher's head runs, frozen,
            on the regions that the student sampled in this step, so that row i is the same region in both nets. A tap
            names the stage of a cascade: ``roi_head.bbox_head.2.fc_cls``.
        queries: the taps are what the decoders read, and the teacher's decoder and head, frozen, judge both nets'
            memory, layer by layer, by the teacher's own queries. In query detectors of mmdet (DETR, Conditional, DAB
            and Deformable DETR, DINO, DDQ) the tap is what the encoder gives, ``memory='encoder'``
            (:class:`~lckd_mm.losses.QueryLoss`). In Mask2Former they are what the pixel decoder gives, mask features
            and each level: ``mask='decode_head.pixel_decoder[0]'``, ``memory0='decode_head.pixel_decoder[1][0]'`` and
            so on, in mmdet in ``panoptic_head`` (:class:`~lckd_mm.losses.MaskQueryLoss`).
        classes: for class scores: None, and the names of both nets' classes must agree where they are known; 'by name'
            compares the classes that both nets have, whatever their order; a dict gives names (see
            :class:`~lckd_mm.distillation.classes.ClassMatch`); 'by position' compares them as they stand.
        of: with several teachers, the name of the one whose taps these are; a list stands for a term of each, see
            :class:`~lckd_mm.distillation.Distiller`. 'student': the taps ``teacher`` are the student's, too, and their
            features, without gradient, teach those of its taps ``student``, as a deep stage a shallow one.
        images: 'labelled', or 'unlabelled' for those of :class:`~lckd_mm.hooks.UnlabelledHook`, on which both nets run
            a plain forward, up to the last tap, as in training.
    Raises:
        KeyError: an unknown tap, loss or connector. ValueError: a bad weight, name or number of taps.
    Example:
        loss_ofd=dict(
            loss=dict(type='lckd_mm.OFDLoss'),
            on=['stage2', 'stage3', 'stage4'], weight=1e-4,
            connector=dict(type='lckd_mm.ConvBN'),
            teacher_connector=dict(type='lckd_mm.MarginReLU'),
        )
    """

    def __init__(
        self,
        name: str,
        taps: tuple[FeatureTaps, FeatureTaps],
        net: nn.Module,
        before: Mapping[str, 'Term'],
        *,
        loss: Any,
        on: Any = None,
        student: Any = None,
        teacher: Any = None,
        weight: float | str = 1.0,
        connector: Any = None,
        teacher_connector: Any = None,
        given: Any = None,
        reuse: Any = None,
        regions: bool = False,
        queries: bool = False,
        classes: Any = None,
        of: str | None = None,
        images: str = 'labelled',
    ):
        super().__init__()
        self.name = name
        #: The name of its teacher; None where there is one alone.
        self.of = of
        #: Whether it reads the images of :class:`~lckd_mm.hooks.UnlabelledHook`.
        self.unlabelled = arguments.choice(f'term {name!r}', 'images', images, _IMAGES) == 'unlabelled'
        if classes in ('byname', 'byposition'):  # what --cfg-options makes of the words
            classes = BY_NAME if classes == 'byname' else BY_POSITION
        #: The running means behind a weight that is a share of the loss; the objective sets the weight in each batch.
        self.running = parse_share(f'term {name!r}', weight)
        self.weight = arguments.number(f'term {name!r}', 'weight', 1.0 if self.running else weight, at_least=0)
        #: Factor on the weight; 1 unless a LossWeightHook sets it.
        self.scale = 1.0
        #: The two halves: student and teacher.
        self.student = Side(name, 'connector', on if student is None else student, taps[0])
        self.teacher = Side(name, 'teacher_connector', on if teacher is None else teacher, taps[1])
        #: The teacher's side that the student's connected features have to equal in shape.
        self.into = self.teacher if reuse is None else Side(name, 'teacher_connector', reuse, taps[1])
        counts = len(self.student.names), len(self.into.names)
        if counts[0] != counts[1]:
            raise ValueError(f'term {name!r}: {counts[0]} student taps, but {counts[1]} teacher taps')
        #: The path of the teacher's part that runs on the student's features; None without ``reuse``.
        self.part = None if reuse is None else self._part(teacher_connector, classes)
        #: The student's head that scores regions, and the teacher's, which is known once the term is bound.
        self.regions = self.their_regions = None
        if arguments.boolean(f'term {name!r}', 'regions', regions):
            if self.part is not None:
                raise ValueError(f'term {name!r}: reuse and regions=True exclude each other; remove one')
            self.regions = RegionHead.of(name, taps[0], self.student.names, net)
        #: Whether the teacher's decoder judges both nets' memory; what does it, once the term is bound.
        self.queries = arguments.boolean(f'term {name!r}', 'queries', queries)
        self.judge = None
        if self.queries:
            others = dict(reuse=reuse, regions=regions or None, teacher_connector=teacher_connector, classes=classes)
            for key in (key for key, value in others.items() if value is not None):
                raise ValueError(f'term {name!r}: {key} and queries=True exclude each other; remove one')
        self._advice = self._of_rows(net)
        self.loss = build_registered(self._with_channels(loss), f'term {name!r}: loss')
        #: The name of its class, for error messages.
        self.loss_name = type(self.loss).__name__
        if not isinstance(self.loss, Loss):
            self.loss = PlainLoss(self.loss)
        if self.loss.of_queries and not self.queries:
            raise ValueError(
                f'term {name!r}: {self.loss_name} and queries=False do not belong together; write queries=True in the '
                'term'
            )
        self._read_given({} if given is None else given, taps)
        if 'region_labels' in self.extras and getattr(self.regions, 'kind', None) != 'mask':
            raise ValueError(
                f"term {name!r}: {self.loss_name} compares masks of the same regions; tap the mask head's logits, "
                "'roi_head.mask_head.conv_logits', and write regions=True"
            )
        self.check_axes()
        self.student.connect(connector, self.into, {n: (t.student, t.into) for n, t in before.items()})
        self.teacher.connect(teacher_connector, self.student, {n: (t.teacher, t.student) for n, t in before.items()})
        self.connectors, self.teacher_connectors = self.student.connectors, self.teacher.connectors
        head = owner_head(net, taps[0].addresses[self.student.names[0]].path)
        if self.part is None:
            self.loss.read_head(head)
            self.loss.bind_student(self.student.layers(net), f'term {name!r}')
        self.match = None if classes in (None, BY_POSITION) else ClassMatch(name, classes, self.loss)
        sides = nn.ModuleList([self.connectors, self.teacher_connectors])
        if self.match is not None and (any(True for _ in sides.parameters()) or self.student.lender):
            raise ValueError(
                f'term {name!r}: classes={classes!r} compares the scores themselves; remove the connector, or take '
                "dict(type='lckd_mm.MatchSize'), which resizes alone"
            )
        #: The student's number of classes if it is class scores that are compared, whose names have to agree.
        self._compared = None
        self._own = score_count(head, self.student.width())
        scores = self.loss.of_classes or scores_classes(head, self.student.width())
        if self.part is None and not self.queries and scores:
            self._compared = self._own[0] if classes is None else None

    def forward(self, batch: Batch, done: Connected) -> Tensor:
        """The weighted term, a scalar in float32 or wider whatever the autocast state."""
        return self.weight * self.scale * self.compare(batch, done)

    def compare(self, batch: Batch, done: Connected) -> Tensor:
        """The term without its weight.

        ``done`` holds the earlier terms' connected features, which this one may borrow; this term adds its own.
        """
        first = levels(batch.student[self.student.names[0]])[0]
        with torch.autocast(first.device.type, enabled=False):
            if self.regions is not None:
                if not len(first):  # no object, so no region for a mask
                    return sum(0 * x.sum() for x in (*flat(self.student.raw(batch.student)), *self.parameters()))
                batch = replace(batch, teacher={**batch.teacher, **batch.regions(self, self._regional())})
            raw, raw_teacher, ours, theirs = self._select(batch.student, batch.teacher, done)
            done[self.name] = dict(zip(self.student.names, ours)), dict(zip(self.teacher.names, theirs))
            if self.part is not None:
                ours = self._reused(batch, ours)
            if self.queries:
                for tap, x, like in zip(self.student.names, ours, theirs):
                    levels_differ = like.dim() == 3 and x.shape[1] != like.shape[1]
                    same_shape(f'queries=True at tap {tap!r}', x, like, _OF_LEVELS if levels_differ else '')
                ours, theirs = batch.judge(self.judge, ours)
            connectors = self.teacher_connectors or [None] * len(theirs)
            extras = dict(
                data_samples=batch.data_samples,
                inputs=batch.inputs,
                replay=partial(self._replay, batch),
                raw_student=flat(raw),
                raw_teacher=flat(raw_teacher),
                teacher_connector=[c for c, feature in zip(connectors, theirs) for _ in levels(feature)],
            )
            if 'region_labels' in self.extras:
                extras['region_labels'] = batch.noted[self.regions.mask_loss]
            extras = {key: extras[key] for key in self.extras}
            extras |= {key: flat(side.raw(getattr(batch, side.role))) for key, side in self.given.items()}
            return self.loss(*self._kept(flat(ours), flat(theirs)), **extras)

    @property
    def key(self) -> Key:
        """Which batch it sees."""
        return self.of, self.unlabelled

    @property
    def idle(self) -> bool:
        """Whether its weight is 0 now, and no share of the loss has to be measured."""
        if self.running is None:
            return self.weight * self.scale == 0
        return self.scale == 0 and self.running.settled

    @property
    def replays(self) -> bool:
        """Whether its loss runs the nets again."""
        return 'replay' in self.extras

    def reads(self) -> tuple[list[str], list[str]]:
        """The student and teacher taps that it reads."""
        sides = [self.student, self.teacher, self.into, *self.given.values()]
        student, teacher = ([n for side in sides if side.role == role for n in side.names] for role in _ROLES)
        return student, teacher

    def bind(self, teacher: nn.Module) -> None:
        """Let connectors and the loss read the teacher's layers; called after building and again after loading it."""
        taps = self.teacher.taps
        if self.regions is not None:
            self.their_regions = RegionHead.of(self.name, taps, self._regional(), teacher)
        if self.queries:
            self.judge = judge_of(self.name, teacher)
            addresses = {tap: str(taps.addresses[tap]) for tap in self.teacher.names}
            self.judge.check(addresses, self.loss_name, self.loss.of_queries)
        for connector, tap in zip(self.teacher_connectors, self.teacher.names):
            norm = trace.norm if (trace := taps.traces.get(tap)) else None
            connector.bind(teacher.get_submodule(norm) if norm else None, f'term {self.name!r}, tap {tap!r}')
        self.check_axes()
        head = owner_head(teacher, self.judge.head if self.queries else taps.addresses[self.teacher.names[0]].path)
        if self.part is not None:
            self.loss.read_head(head)
        given = [side for side in self.given.values() if side.role == 'teacher']
        heads = [head, *(owner_head(teacher, taps.addresses[side.names[0]].path) for side in given)]
        self.loss.read_teacher_head(next((found for found in heads if found is not None), None))
        self._theirs = score_count(head, self.teacher.width())
        if self.match is not None:
            self.match.prepare((self._own[0], self._own[1] or self.student.width()), self._theirs)
        self.loss.bind(self.teacher.layers(teacher), f'term {self.name!r}')

    def check_axes(self) -> None:
        """Refuse taps whose rows or axes cannot be compared; those that are traced later are seen in :meth:`bind`."""
        compared = self.regions is not None or self.loss.matches_queries
        for side in () if compared else (self.student, self.teacher, self.into, *self.given.values()):
            side.check_rows(self._advice)
        for side in (self.student, self.teacher) if self.loss.takes else ():
            side.check_known(self.loss_name)

    def match_classes(self, student: list[str] | None, teacher: list[str] | None) -> None:
        """Match the nets' classes by their names, or check that they agree, before the first iteration.

        Raises:
            ValueError: they differ, or cannot be matched; None stands for names that are not known.
        """
        if self.match is not None:
            self.match.match(student, teacher)
        elif student and teacher and (self._compared, self._theirs[0]) == (len(student), len(teacher)):
            check_names(f'term {self.name!r}: {self.loss_name}', student, teacher)

    def waiting(self) -> list[Waiting]:
        """Connectors that need training images before the first iteration."""
        pairs = zip(self.teacher.names, self.teacher_connectors)
        return [Waiting(tap, connector, self.of) for tap, connector in pairs if connector.waits_for_data]

    def _select(self, student: Features, teacher: Features, done: Connected) -> tuple[list[Feature], ...]:
        """The features (student raw, teacher raw, student connected, teacher connected)."""
        raw, raw_teacher = self.student.raw(student), self.teacher.raw(teacher)
        likes = raw_teacher if self.into is self.teacher else self.into.raw(teacher)
        connected = self.student.connected(raw, likes, done)
        return raw, raw_teacher, connected, self.teacher.connected(raw_teacher, raw, done)

    def _of_rows(self, net: nn.Module) -> str:
        """What else can be done with rows that the student chooses itself: regions, or predictions of queries."""
        traces = map(self.student.taps.traces.get, self.student.names)
        if any(trace is not None and trace.queries is not None for trace in traces):
            return '; or match the predictions of both nets, by lckd_mm.MatchedQueryLoss'
        with contextlib.suppress(ValueError):
            RegionHead.of(self.name, self.student.taps, self.student.names, net)
            return "; or let the teacher's head score the student's regions: regions=True in the term"
        return ''

    def _regional(self) -> list[str]:
        """The teacher's taps that its head fills from the student's regions."""
        given = [name for side in self.given.values() if side.role == 'teacher' for name in side.names]
        return [*self.teacher.names, *given]

    def _part(self, teacher_connector: Any, classes: Any) -> str:
        """The teacher's part, such as ``bbox_head``, that holds the taps of ``reuse`` and those to compare."""
        taps = self.into.taps
        parts = {tap: taps.addresses[tap].path.partition('.')[0] for tap in (*self.into.names, *self.teacher.names)}
        if len(set(parts.values())) > 1:
            found = ', '.join(f'{tap!r} in {part!r}' for tap, part in parts.items())
            raise ValueError(
                f'term {self.name!r}: reuse runs one part of the teacher, and these taps lie in several: {found}; name '
                'taps of one part'
            )
        for key, value in (('teacher_connector', teacher_connector), ('classes', classes)):
            if value is not None:
                raise ValueError(
                    f"term {self.name!r}: with reuse, outputs of the teacher's own part are compared as they are; "
                    f'remove {key}'
                )
        return parts[self.into.names[0]]

    def _read_given(self, given: Any, taps: tuple[FeatureTaps, FeatureTaps]) -> None:
        """Note what the loss is passed: :attr:`extras`, and :attr:`given`, argument to the side that gives it."""
        if not isinstance(given, Mapping):
            raise TypeError(f"term {self.name!r}: given must be like dict(scores='logits'), got {given!r}")
        wanted = self.loss.forward_arguments()
        self.extras = [key for key in EXTRAS if key in wanted]
        wanted = {key: must for key, must in wanted.items() if key not in EXTRAS}
        of_teacher = [key for key in wanted if key.removeprefix('student_') == key]
        for key in given:
            if key not in of_teacher:
                takes = ', '.join(map(repr, of_teacher)) or 'nothing'
                raise KeyError(f'term {self.name!r}: given: {self.loss_name} does not take {key!r}, it takes {takes}')
        for key, must in wanted.items():
            if must and (name := key.removeprefix('student_')) not in given:
                raise KeyError(
                    f"term {self.name!r}: {self.loss_name} needs given=dict({name}=TAP), the teacher's tap that holds "
                    f"its {name}, such as 'logits'"
                )
        self.given = {key: Side(self.name, 'teacher_connector', given[key], taps[1]) for key in given}
        own = [key for key in given if f'student_{key}' in wanted]
        self.given |= {f'student_{key}': Side(self.name, 'connector', given[key], taps[0]) for key in own}

    def _reused(self, batch: Batch, ours: list[Feature]) -> list[Feature]:
        """What the teacher's part makes of the student's connected features."""
        for tap, own, feature in zip(self.into.names, ours, self.into.raw(batch.teacher)):
            for x, like in zip(levels(own), levels(feature), strict=True):
                same_shape(f'reuse at tap {tap!r}', x, like)
        return self.teacher.raw(batch.reuse(self.part, dict(zip(self.into.names, ours)), self.teacher.names))

    def _replay(self, batch: Batch, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Both nets' connected features on other images."""
        features = batch.replay(images, self.student.names, self.teacher.names)
        with untracked_statistics(self.connectors):
            _, _, ours, theirs = self._select(*features, {})
        return self._kept(flat(ours), flat(theirs))

    def _kept(self, student: list[Tensor], teacher: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The features, of class scores those that :attr:`match` keeps."""
        return (student, teacher) if self.match is None else self.match.kept(student, teacher)

    def _with_channels(self, config: Mapping) -> Mapping:
        kind = registered_class(config, f'term {self.name!r}: loss')
        parameters = inspect.signature(kind).parameters
        if 'loss' in parameters and isinstance(config.get('loss'), Mapping):
            config = {**config, 'loss': self._with_channels(config['loss'])}
        for key, side in (('channels', self.teacher), ('student_channels', self.student)):
            if key in parameters and key not in config:
                config = {**config, key: side.widths(f"loss=dict(type='{kind.__name__}', {key}=[…])")}
        return config
