"""Chooses the terms of a distillation for two nets: what both have, what fits, and what measured best."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .. import arguments
from ..distillation.dry_run import MadeUpImage, trace_taps
from ..distillation.judge import Judge
from ..distillation.queries import judge_of, memory_of
from ..distillation.regions import RegionHead
from ..distillation.side import levels
from ..errors import one_line
from ..functional.shapes import kind_of, width
from ..hosts import host_of, row_choosers, run_once
from ..taps import FeatureTaps
from ..taps.presets import preset_taps


@dataclass
class Chosen:
    """A recipe's terms for two nets: taps, term name to config, term name to the reason in a sentence."""

    recipe: str
    taps: list[str | dict[str, str]] = field(default_factory=list)
    terms: dict[str, dict] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    #: What was looked at and not taken, and why.
    notes: list[str] = field(default_factory=list)

    def add(self, taps: str | dict[str, str], name: str, term: dict, reason: str) -> None:
        """Add a term and its taps, a preset's name or name to address."""
        if taps not in self.taps:
            self.taps.append(taps)
        self.terms[name], self.reasons[name] = term, reason


class Pair:
    """Student and teacher, run once on the same made-up image: the presets that both have, and what they give.

    Args:
        student: as its config builds it. teacher: loaded.
        classes: the names of the student's and of the teacher's classes; None where they are not known.
        size: height and width of the image; by default those of the dry run.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        classes: tuple[list[str] | None, list[str] | None],
        size: tuple[int, int] | None = None,
    ):
        if torch.cuda.is_available():  # some operators run there alone
            student, teacher = student.cuda(), teacher.cuda()
        self.nets, self.classes = (student, teacher), classes
        self.image = MadeUpImage.of('recipe', size, [student])
        self.missing: dict[str, str] = {}
        self._taps: dict[str, tuple[FeatureTaps, FeatureTaps]] = {}
        for preset in ('backbone', 'neck', 'logits'):
            try:
                self._look(preset)
            except ValueError as error:
                self.missing[preset] = str(error).removeprefix('taps: ')

    def _look(self, preset: str) -> None:
        """Trace the preset's taps in both nets."""
        both = []
        for role, net in zip(('student', 'teacher'), self.nets):
            taps = FeatureTaps(preset_taps(net, preset, self.image.size), role)
            trace_taps(taps, net, self.image)
            both.append(taps)
        self._taps[preset] = (both[0], both[1])

    @property
    def family(self) -> str:
        """'classifier', 'segmentor', 'dense detector', 'two-stage detector' or 'query detector'."""
        student = self.nets[0]
        if host_of(student) != 'mmdet':
            return {'mmpretrain': 'classifier', 'mmseg': 'segmentor'}[host_of(student)]
        if any(chooser.rows.startswith('query') for chooser in row_choosers(student)):
            return 'query detector'
        return 'two-stage detector' if getattr(student, 'roi_head', None) is not None else 'dense detector'

    @property
    def asks(self) -> bool:
        """Whether the student has queries, so that its class scores are those of rows of its own."""
        return self.family == 'query detector' or bool(memory_of(self.nets[0]))

    def common(self, preset: str) -> list[str]:
        """The names of a preset's taps that both nets have, in order of depth."""
        if preset not in self._taps:
            return []
        student, teacher = self._taps[preset]
        return [name for name in student.addresses if name in teacher.traces and name in student.traces]

    def before_relu(self, tap: str) -> bool:
        """Whether both nets' stage is a map that a BatchNorm gives, directly or before an addition: OFD's position."""
        for net, taps in zip(self.nets, self._taps['backbone']):
            trace = taps.traces[tap]
            norm = net.get_submodule(trace.norm) if trace.norm else None
            is_batch_norm = isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.weight is not None
            if len(trace.shapes[0]) != 4 or not is_batch_norm:
                return False
        return True

    def trained(self, preset: str, tap: str) -> bool:
        """Whether the student's tap carries a gradient: in a frozen stage a term would train nothing."""
        net, taps = self.nets[0], self._taps[preset][0]
        try:
            with taps.record(net, [tap], stop=True) as features:
                run_once(net, self.image.size, taps.traces[tap].passes[0].mode, True, self.image.channels)
        except Exception as error:  # a host may raise anything
            raise ValueError(f'{tap}: {one_line(error)}') from error
        return levels(features[tap])[0].requires_grad

    def scores(self) -> tuple[list[str], bool]:
        """The taps of the class scores, and whether the student's are to be resized; ValueError if they do not fit."""
        if 'logits' in self.missing:
            raise ValueError(self.missing['logits'])
        taps = self.common('logits')
        both = [of.addresses for of in self._taps['logits']]
        if any(set(taps) != set(names) for names in both):
            raise ValueError(f'the nets give their class scores at {", ".join(both[0])} and {", ".join(both[1])}')
        resized = False
        for tap in taps:
            own, theirs = (of.traces[tap].shapes for of in self._taps['logits'])
            if len(own) != len(theirs):
                raise ValueError(f'{tap} has {len(own)} levels in the student and {len(theirs)} in the teacher')
            for a, b in zip(own, theirs):
                if a[2:] != b[2:] and self.family != 'segmentor':
                    raise ValueError(f'the class scores have {a[2:]} and {b[2:]} positions')
                resized |= a[2:] != b[2:]
                if width(a) != width(b) and not all(self.classes):
                    raise ValueError(
                        f'the nets give {width(a)} and {width(b)} scores, and which of them mean the same is not known'
                    )
        return taps, resized

    def region_scores(self) -> dict[str, str]:
        """The tap of the last stage's class scores of regions; ValueError if the heads cannot score the same ones."""
        found = []
        for role, net in zip(('student', 'teacher'), self.nets):
            heads = getattr(net.roi_head, 'bbox_head', None)
            stage = f'.{len(heads) - 1}' if isinstance(heads, nn.ModuleList) else ''
            taps = FeatureTaps(dict(scores=f'roi_head.bbox_head{stage}.fc_cls'), role)
            try:
                taps.check_paths(net)
            except KeyError as error:
                raise ValueError(one_line(error)) from error
            RegionHead.of('loss_kd', taps, ['scores'], net)
            found.append((str(taps.addresses['scores']), net.get_submodule(taps.addresses['scores'].path).out_features))
        if found[0][0] != found[1][0]:
            raise ValueError(
                f'the last stages are {found[0][0]} and {found[1][0]}: write student_taps and teacher_taps'
            )
        own, theirs = self.classes
        if found[0][1] != found[1][1] or (own and theirs and own != theirs):
            raise ValueError('the nets score other classes')
        return dict(scores=found[0][0])

    def memory(self) -> tuple[Judge, Any]:
        """The teacher's judge, and what connects the memories; ValueError if the student has no memory of its kind."""
        judge, own = judge_of('loss_queries', self.nets[1]), memory_of(self.nets[0])
        if own != judge.memory:
            read = ' and '.join(', '.join(of.values()) or 'nothing' for of in (own, judge.memory))
            raise ValueError(f'the decoders of the nets read {read}')
        self._taps['memory'] = tuple(FeatureTaps(judge.memory, role) for role in ('student', 'teacher'))
        for net, taps in zip(self.nets, self._taps['memory']):
            try:
                trace_taps(taps, net, self.image)
            except (KeyError, ValueError) as error:
                raise ValueError(one_line(error)) from error
        fit = _one(self.connector('memory', tap) for tap in judge.memory)
        student, teacher = self._taps['memory']
        return judge, None if all(student.traces[tap].agrees(teacher.traces[tap]) for tap in judge.memory) else fit

    def connector(self, preset: str, tap: str) -> Any:
        """What makes the student's feature equal in shape to the teacher's; ValueError if no connector does."""
        shapes = [taps.traces[tap].shapes[0] for taps in self._taps[preset]]
        kinds = [kind_of(torch.empty(shape, device='meta')) for shape in shapes]
        if kinds[0] != kinds[1] or kinds[0] is None:
            raise ValueError(f'{tap} is {kinds[0]} in the student and {kinds[1]} in the teacher')
        if kinds[0] == 'tokens' and shapes[0][1] != shapes[1][1]:
            raise ValueError(f'{tap} has {shapes[0][1]} tokens in the student and {shapes[1][1]} in the teacher')
        if kinds[0] != 'map':
            return dict(type='lckd_mm.Linear')
        fit = dict(type='lckd_mm.ConvBN')
        return fit if shapes[0][2:] == shapes[1][2:] else [fit, dict(type='lckd_mm.MatchSize')]


# ---- recipes: each adds its terms, or raises ValueError if the nets do not have what it needs

#: OFD's share of the loss at the start (docs/studies.md): a number would depend on the size of the images.
_OFD = {
    'classifier': 'start:0.9',
    'segmentor': 'start:0.7',
    'dense detector': 'start:0.2',
    'two-stage detector': 'start:0.2',
    'query detector': 'start:0.2',
}
_OF_DETECTORS = (
    'in the detection demo, a short training, OFD gained 16.1 mAP, KD 13.6; on blood cells OFD did not help '
    '(docs/studies.md)'
)
#: Family to what stands behind OFD.
_WHY_OFD = {
    'classifier': 'on the digits OFD gained 1.9 points, with KD 2.5 (configs/digits/README.md)',
    'segmentor': 'in the segmentation demo, with FCN, OFD gained 15.1 mIoU, KD 3.5 (docs/results.md)',
    'dense detector': _OF_DETECTORS,
    'two-stage detector': f'{_OF_DETECTORS}; no study of ours is on two-stage detectors',
    'query detector': f'{_OF_DETECTORS}; no study of ours is on detectors with queries',
}

#: Family to temperature and weight of KD, and where the figures are from.
_KD = {
    'classifier': (4.0, 1.0, 'on the digits KD gained 2.3 points (configs/digits/README.md)'),
    'segmentor': (
        2.0,
        1.0,
        'in the segmentation demo, with FCN, KD gained 3.5 mIoU (docs/results.md)',
    ),
    'dense detector': (
        2.0,
        'start:0.5',
        'in the detection demo, a short training, KD gained 13.6 mAP, OFD 16.1; on blood cells, in a long training, '
        'KD gained 1.6 (docs/studies.md)',
    ),
}


def kd(pair: Pair, chosen: Chosen) -> None:
    """The class scores: of regions and of queries those of the same ones."""
    if pair.asks:
        return _of_queries(pair, chosen)
    if pair.family == 'two-stage detector':
        return _of_regions(pair, chosen)
    taps, resized = pair.scores()
    tau, weight, why = _KD[pair.family]
    term = dict(loss=dict(type='lckd_mm.KDLoss', tau=tau), on=_on(taps), weight=weight)
    if resized:
        term['connector'] = dict(type='lckd_mm.MatchSize')
    own, theirs = pair.classes
    if own and theirs and own != theirs:
        if len(set(own) & set(theirs)) < 2:
            raise ValueError('the nets score other classes')
        term['classes'] = 'by name'
        why += '; compared are the classes that both nets have, by name'
    chosen.add('logits', 'loss_kd', term, f'The softened class scores: {why}.')


#: Of queries CrossKD's weight for Deformable DETR. Its temperature of 3 and weight of 0.5 for regions, beside boxes and
#: masks, lowered Mask R-CNN on the digit scenes.
_KD_OF_REGIONS, _KD_OF_QUERIES = dict(tau=1.0, weight='start:0.5'), 1.0
_ON_SCENES = 'on the digit scenes {} gained {} AP at equal steps, on one seed (docs/studies.md)'
#: By what the teacher's decoder gives: what it reads, and where the weights are from.
_MEMORIES = dict(
    boxes=('encoder output', _ON_SCENES.format('Deformable DETR', 15.6)),
    masks=('pixel decoder', "the weights are those of Mask2Former's own loss, and no study of ours stands behind them"),
)


def _of_regions(pair: Pair, chosen: Chosen) -> None:
    taps = pair.region_scores()
    loss = dict(type='lckd_mm.KDLoss', tau=_KD_OF_REGIONS['tau'])
    term = dict(loss=loss, on='scores', regions=True, weight=_KD_OF_REGIONS['weight'])
    measured = _ON_SCENES.format('Mask R-CNN', 8.5)
    chosen.add(taps, 'loss_kd', term, f'The class scores of the regions that the student samples: {measured}.')


def _of_queries(pair: Pair, chosen: Chosen) -> None:
    judge, connector = pair.memory()
    loss = dict(type=f'lckd_mm.{judge.loss}')
    term = dict(loss=loss, on=_on(list(judge.memory)), queries=True, weight=_KD_OF_QUERIES)
    if connector is not None:
        term['connector'] = connector
    of, weight = _MEMORIES[judge.gives]
    why = f"What the teacher's decoder makes of the student's {of}, by its own queries"
    chosen.add(judge.memory, 'loss_queries', term, f'{why}: {weight}.')


def ofd(pair: Pair, chosen: Chosen) -> None:
    """The stages as a BatchNorm gives them: before their ReLU, where they have one (MobileNetV2 has none there)."""
    stages, left = pair.common('backbone'), []
    for tap in list(stages):
        if not pair.before_relu(tap):
            raise ValueError(f'{tap} is not what a BatchNorm gives in both nets')
        if not pair.trained('backbone', tap):
            stages.remove(tap)
            left.append(tap)
    if not stages:
        raise ValueError(pair.missing.get('backbone', 'the backbones have no stage in common that is trained'))
    term = dict(
        loss=dict(type='lckd_mm.OFDLoss'),
        on=stages,
        weight=_OFD[pair.family],
        connector=_one([pair.connector('backbone', tap) for tap in stages]),
        teacher_connector=dict(type='lckd_mm.MarginReLU'),
    )
    if left:
        chosen.notes.append(f'{", ".join(left)} is left out: frozen in the student')
    chosen.add('backbone', 'loss_ofd', term, f'OFD: the stages as a BatchNorm gives them; {_WHY_OFD[pair.family]}.')


def pkd(pair: Pair, chosen: Chosen) -> None:
    """The levels of the pyramid, or the stages, by correlation: for nets of any two kinds."""
    preset = 'neck' if pair.family.endswith('detector') and pair.common('neck') else 'backbone'
    taps, why = [], pair.missing.get(preset, 'the nets have no feature in common')
    for tap in pair.common(preset)[: 4 if preset == 'neck' else None]:
        try:
            pair.connector(preset, tap)
            taps += [tap] if pair.trained(preset, tap) else []
        except ValueError as error:
            why = str(error)
    if not taps:
        raise ValueError(why)
    term = dict(
        loss=dict(type='lckd_mm.PKDLoss'),
        on=taps,
        weight=6.0 if pair.family == 'two-stage detector' else 10.0,
        connector=_one(pair.connector(preset, tap) for tap in taps),
    )
    what = 'levels of the pyramid' if preset == 'neck' else 'stages'
    chosen.add(
        preset, 'loss_pkd', term, f'PKD: the {what} by correlation, which suits nets of different kinds; the weight is '
        "the paper's for detectors, and no study of ours stands behind it."
    )  # fmt: skip


def features(pair: Pair, chosen: Chosen) -> None:
    """OFD where both nets have its positions, else PKD."""
    _first_of([ofd, pkd], pair, chosen)


def lipschitz(pair: Pair, chosen: Chosen) -> None:
    """Lipschitz matching of connected maps alone, as a reference: no study of ours stands behind it."""
    stages = [tap for tap in pair.common('backbone') if pair.trained('backbone', tap)]
    if len(stages) < 2:
        raise ValueError(pair.missing.get('backbone', 'the backbones have fewer than two stages in common'))
    connector = _one(pair.connector('backbone', tap) for tap in stages)
    term = dict(loss=dict(type='lckd_mm.LipschitzLoss'), on=stages, weight=0.1, connector=connector)
    chosen.add(
        'backbone', 'loss_lipschitz', term, 'Lipschitz matching of the connected stages; in our studies it does not '
        'raise the score (docs/results.md).'
    )  # fmt: skip


def london(pair: Pair, chosen: Chosen) -> None:
    """The paper's setting: OFD, and Lipschitz matching of its connected maps."""
    ofd(pair, chosen)
    term = dict(
        loss=dict(type='lckd_mm.LipschitzLoss'), on=chosen.terms['loss_ofd']['on'], weight=0.1, connector='loss_ofd'
    )
    chosen.add(
        'backbone', 'loss_lipschitz', term, "LONDON: Lipschitz matching of OFD's connected maps; in both demos the "
        "gain is OFD's (docs/results.md)."
    )  # fmt: skip


def auto(pair: Pair, chosen: Chosen) -> None:
    """What measured best on the family, as far as the nets have it."""
    if pair.family != 'classifier':
        # The order of docs/studies.md; PKD is last: no study of ours stands behind it, nor behind KD of the others.
        orders = {} if pair.asks else {'dense detector': [kd, ofd, pkd], 'segmentor': [ofd, kd, pkd]}
        return _first_of(orders.get(pair.family, [ofd, pkd]), pair, chosen)
    # On the digits KD with OFD was best, 97.62 against 97.40 of KD and 97.04 of OFD.
    for recipe in (kd, ofd):
        try:
            recipe(pair, chosen)
        except ValueError as error:
            chosen.notes.append(f'{recipe.__name__} is left out: {error}')
    if not chosen.terms:
        pkd(pair, chosen)


RECIPES: dict[str, Callable[[Pair, Chosen], None]] = dict(
    auto=auto, kd=kd, features=features, london=london, lipschitz=lipschitz
)


#: Family to KD's share of the loss at the start; half of it is on images without labels.
_KD_OF_ALL = {'classifier': 0.9, 'segmentor': 0.9, 'dense detector': 0.5}
_WHY_UNLABELLED = {
    'segmentor': 'with ten labelled images of nuclei DeepLabV3+ gained 3.5 mIoU at equal steps (docs/studies.md)',
    'dense detector': 'with forty labelled images of blood cells RetinaNet gained 3.3 mAP (docs/studies.md)',
}


def kd_of_all(pair: Pair, chosen: Chosen) -> None:
    """The class scores, on images with and without labels."""
    if pair.asks or pair.family not in _KD_OF_ALL:
        raise ValueError('the class scores of its regions or queries need labelled images; leave out --unlabelled')
    kd(pair, chosen)
    term = chosen.terms['loss_kd'] | dict(weight=f'start:{_KD_OF_ALL[pair.family] / 2}')
    why = _WHY_UNLABELLED.get(pair.family, 'no study of ours is on these for classifiers')
    chosen.add('logits', 'loss_kd', term, chosen.reasons['loss_kd'])
    chosen.add(
        'logits', 'loss_unlabelled', term | dict(images='unlabelled'), f'The same on images without labels: {why}.'
    )


def choose(recipe: str, pair: Pair, unlabelled: bool = False) -> Chosen:
    """The terms of a recipe for two nets; ``unlabelled`` if there are images without labels.

    Raises:
        ValueError: an unknown recipe, or nets that do not have what it needs.
    """
    arguments.choice('--recipe', 'recipe', recipe, RECIPES)
    if unlabelled:
        if recipe not in ('auto', 'kd'):
            raise ValueError(
                f'--unlabelled: the recipe {recipe!r} compares features, and images without labels are compared by '
                'their class scores; take --recipe kd, or none'
            )
        chosen = Chosen(recipe)
        try:
            kd_of_all(pair, chosen)
        except ValueError as error:
            student, teacher = (type(net).__name__ for net in pair.nets)
            raise ValueError(f'--unlabelled does not fit {student} and {teacher}: {error}') from error
        return chosen
    chosen = Chosen(recipe)
    try:
        RECIPES[recipe](pair, chosen)
    except ValueError as error:
        other = [name for name in ('features', 'kd') if name != recipe and _fits(name, pair)]
        way = f'; --recipe {other[0]} fits' if other else ''
        student, teacher = (type(net).__name__ for net in pair.nets)
        raise ValueError(f'recipe {recipe!r} does not fit {student} and {teacher}: {error}{way}') from error
    return chosen


def _fits(recipe: str, pair: Pair) -> bool:
    try:
        RECIPES[recipe](pair, Chosen(recipe))
    except ValueError:
        return False
    return True


def _first_of(recipes: Iterable[Callable[[Pair, Chosen], None]], pair: Pair, chosen: Chosen) -> None:
    *others, last = recipes
    for recipe in others:
        try:
            return recipe(pair, chosen)
        except ValueError as error:
            chosen.notes.append(f'{recipe.__name__} is left out: {error}')
    return last(pair, chosen)


def _one(connectors: Iterable[Any]) -> Any:
    """One config for all taps; resizing changes nothing where sizes agree."""
    connectors = list(connectors)
    if any(isinstance(c, list) for c in connectors):
        connectors = [c if isinstance(c, list) else [c, dict(type='lckd_mm.MatchSize')] for c in connectors]
    if any(c != connectors[0] for c in connectors):
        raise ValueError('some of the features are maps, and some tokens')
    return connectors[0]


def _on(taps: list[str]) -> Any:
    return taps[0] if len(taps) == 1 else taps
