"""What the fuzz tests share: mutations of valid configs, a judge of how a malformed one ends, the smallest hosts."""

import contextlib
import copy
import itertools
import linecache
import math
import re
import signal
from collections import Counter
from pathlib import Path

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mmengine.logging import MMLogger
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import DefaultScope
from mmengine.utils import ManagerMixin
from run_helpers import count
from torch import nn

import lckd_mm
from lckd_mm.distillation import Distiller
from lckd_mm.errors import one_line
from lckd_mm.hosts import fabricate_samples

#: Malformed configs by theme, under `make test-all` and under `make test`; every theme's test asserts its own number.
PLAN = {
    'addresses': (700, 60),
    'tap names and kinds of taps': (300, 30),
    'terms': (700, 60),
    'losses and connectors': (1200, 100),
    'features that do not fit': (500, 50),
    'teachers': (250, 25),
    'the rest of a Distiller': (250, 25),
    'segmentors': (200, 20),
    'detectors': (150, 15),
    'two mistakes at once': (300, 30),
    'hooks': (300, 20),
    'backbones': (300, 30),
    'data sets': (120, 12),
    'config files': (120, 12),
    'arguments': (130, 20),
}
#: Seconds that one config may take before it counts as hung.
PATIENCE = 20
PACKAGE = str(Path(lckd_mm.__file__).parent)
OURS = (ValueError, KeyError, FileNotFoundError, TypeError, ImportError)
SIDE = 16

# 1e15 and not a million million less: what takes its memory is refused by the system, never granted and then filled.
HUGE = 10**15
VALUES = (
    None, True, False, 0, 1, 2, -1, -7, 0.25, 1.5, -2.5, 1e-30, 1e300, HUGE, math.nan, math.inf, -math.inf,
    '', 'zzz', '1', 'nan', [], ['zzz'], [['zzz']], [1, 2], [None], [math.nan, 1.0], (), (3, 4), {}, dict(zzz=1), 1j,
    b'x',
)  # fmt: skip


class Hung(BaseException):
    """A config took longer than :data:`PATIENCE`. Not an Exception, so that nothing swallows it."""


@contextlib.contextmanager
def patience(seconds=PATIENCE):
    def ring(*_):
        raise Hung

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Case(tuple):
    """A malformed config's mutations ((path, kind, value), …): its identity is what it reads as."""

    def __hash__(self):
        return hash(repr(self))

    def __eq__(self, other):
        return repr(self) == repr(other)


def paths_of(config, path=(), skip=()):
    """The path of every key, list item and value in a nested config."""
    if path and path[-1] in skip:
        return
    if path:
        yield path
    if isinstance(config, dict):
        for key, value in config.items():
            yield from paths_of(value, (*path, key), skip)
    elif isinstance(config, (list, tuple)):
        for i, value in enumerate(config):
            yield from paths_of(value, (*path, i), skip)


def get(config, path):
    for key in path:
        config = config[key]
    return config


def apply(config, case):
    """The config with the mutations made; None where one of them changes nothing or cannot be made."""
    config = copy.deepcopy(config)
    for path, kind, value in case:
        try:
            parent, key = get(config, path[:-1]), path[-1]
            old = parent[key]
        except (KeyError, IndexError, TypeError):
            return None
        if isinstance(parent, tuple):
            return None
        if kind == 'replace':
            if type(old) is type(value) and repr(old) == repr(value):
                return None
            parent[key] = copy.deepcopy(value)
        elif kind == 'remove':
            del parent[key]
        elif kind == 'misspell':
            if not isinstance(parent, dict):
                return None
            parent[misspelt(key)] = parent.pop(key)
        elif kind == 'misspell value':
            if not isinstance(old, str):
                return None
            parent[key] = misspelt(old)
        elif kind == 'wrap':
            parent[key] = [old]
        elif kind == 'repeat':
            parent[key] = [old, copy.deepcopy(old)]
    return config


def misspelt(word):
    """As fingers do it: two letters change places, or one is doubled where these are the same."""
    word = str(word)
    for i in range(len(word) - 1, 0, -1):
        if word[i] != word[i - 1] and word[i].isalpha() and word[i - 1].isalpha():
            return word[: i - 1] + word[i] + word[i - 1] + word[i + 1 :]
    return word + word[-1:]


KINDS = ('replace', 'replace', 'replace', 'replace', 'remove', 'misspell', 'misspell value', 'wrap', 'repeat')


def mutations(config, paths=None, values=VALUES, kinds=KINDS, at_once=1):
    """A strategy for :class:`Case`."""
    paths = list(paths_of(config)) if paths is None else list(paths)

    @st.composite
    def draw_one(draw):
        kind = draw(st.sampled_from(kinds))
        return draw(st.sampled_from(paths)), kind, draw(st.sampled_from(values)) if kind == 'replace' else None

    one = draw_one()
    return st.lists(one, min_size=at_once, max_size=at_once, unique_by=repr).map(Case)


def names_in(config, case):
    """What a message may name of each mistake: the key, the distinctive value, what was misspelt and how."""
    names = []
    for path, kind, value in case:
        keys = [p for p in path if isinstance(p, str)]
        names += [keys[-1]]
        old = get(config, path)
        if kind.startswith('misspell'):
            names += [misspelt(path[-1] if kind == 'misspell' else old)]
        if kind == 'replace' and (value is not None and not isinstance(value, bool)):
            names += [f'got {value!r}', repr(value)] if len(repr(value)) > 2 else [f'got {value!r}', f'are {value!r}']
        if kind == 'replace' and isinstance(value, (list, tuple)):
            names += [repr(v) for v in value if isinstance(v, str)]
        if isinstance(old, str) and len(old) > 2:
            names += [repr(old)]
        for taken in (value, old if kind == 'remove' else None):
            names += [repr(key) for key in taken] if isinstance(taken, dict) else []
        if kind == 'replace' and isinstance(value, str):
            names += [f'`{value}`']  # as mmengine quotes
        if value == '':
            names += ["preset ''"]
        # What is sound in itself and does not fit its term is named by the term.
        strict = path[0] == 'terms' and len(path) > 3 and path[2] not in ('on', 'student', 'teacher')
        fits_not = path[-1] in ('type', 'rate') or kind == 'remove' or 'channels' in keys[-1]
        if path[0] == 'terms' and len(path) > 1 and (fits_not or not strict):
            names += [repr(path[1])]
        # A whole dict taken away or replaced is named by what holds it.
        if not isinstance(path[-1], str) and isinstance(old, str):
            names += [repr(old)]
    return names


class Tally:
    """Counts the distinct malformed configs of a theme by how they ended, and keeps those that ended badly."""

    def __init__(self, theme):
        self.theme, self.seen, self.ends, self.bad = theme, set(), Counter(), {}
        self.wanted = count(*PLAN[theme])

    @property
    def full(self):
        return len(self.seen) >= self.wanted

    def judge(self, case, run, names):
        """Run one malformed config; ``names`` are the words of which its message must have one."""
        if repr(case) in self.seen:
            return
        self.seen.add(repr(case))
        try:
            with patience():
                run()
        except Hung:
            self._blame(case, f'hung for {PATIENCE} s')
        except Exception as error:
            fault = self._fault(error, names)
            if fault:
                self._blame(case, fault)
            self.ends['raised'] += 1
        else:
            self.ends['trained'] += 1

    def _fault(self, error, names):
        text, (file, line) = one_line(error), raised_at(error)
        where = f'{type(error).__name__} at {file}: {line!r}: {text[:300]}'
        if not isinstance(error, OURS):
            return f'a bare {where}'
        if names is None:
            return f'{where}' if isinstance(error, AssertionError) else None
        own = file.startswith(PACKAGE) and line.startswith('raise')
        # Python's own sentence on an argument that a signature has not names class and argument.
        signature = re.search(r'(unexpected keyword argument|missing \d required .* argument)', text)
        host = 'site-packages' in file and line.startswith('raise')
        if not own and not signature and not host:
            return f'nobody raised {where}'
        if not any(name and re.search(rf'(?<!\w){re.escape(name)}(?!\w)', text) for name in names):
            return f'names none of {names[:8]}: {where}'
        if len(text) > 1500:
            return f'{len(text)} letters: {where}'
        return None

    def _blame(self, case, fault):
        self.bad.setdefault(re.sub(r'[\d.]+', '#', fault)[:160], (case, fault))

    def report(self):
        print(f'{self.theme}: {len(self.seen)} malformed, {dict(self.ends)}')
        lines = [f'  {case!r}\n    {fault}' for case, fault in itertools.islice(self.bad.values(), 40)]
        assert set(self.ends) == {'raised', 'trained'} or self.wanted < 100, f'all {dict(self.ends)}'
        assert not self.bad, f'{len(self.bad)} kinds of bad ends:\n' + '\n'.join(lines)
        assert len(self.seen) >= self.wanted, f'{len(self.seen)} tried, {self.wanted} wanted'


def raised_at(error):
    frame = error.__traceback__
    while frame.tb_next:
        frame = frame.tb_next
    file = frame.tb_frame.f_code.co_filename
    return file, linecache.getline(file, frame.tb_lineno).strip()


def fuzz(theme, strategy, run, names):
    """Judge cases of a strategy until the theme's number is reached: ``run(case)``, ``names(case)``."""
    tally = Tally(theme)

    @settings(
        max_examples=6 * tally.wanted, derandomize=True, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def each(case):
        if not tally.full and case is not None:
            go = run(case)
            if go is not None:
                tally.judge(case, go, names(case))

    each()
    tally.report()


# ---- hosts


class Pair(nn.Module):
    def forward(self, x):
        return x, 2 * x


class Named(nn.Module):
    def forward(self, x):
        return dict(x=x)


@MMENGINE_MODELS.register_module(name='FuzzTiny', force=True)
class Tiny(nn.Module):
    """Two stages, and one of everything that a tap can meet; ``out_indices`` as the hosts have it."""

    def __init__(self, width=4, out_indices=(1,)):
        super().__init__()

        def stage(a, b):
            return nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU(inplace=True))

        self.layer1, self.layer2 = stage(3, width), stage(width, 2 * width)
        self.linear = nn.Conv2d(width, width, 1)
        self.twice = nn.ReLU()
        self.pair, self.named = Pair(), Named()
        self.unused = nn.Conv2d(width, width, 1)
        self.frozen = nn.Conv2d(3, width, 3, padding=1).requires_grad_(False)
        self.tokens, self.vector = nn.Flatten(2), nn.Flatten(1)
        self.out_indices = out_indices

    def forward(self, x):
        self.frozen(x)
        a = self.layer1(x)
        a = self.twice(self.twice(self.linear(a) + a))
        self.named(self.pair(a)[0])
        b = self.layer2(a)
        self.tokens(b), self.vector(b)
        return tuple((a, b)[i] for i in self.out_indices)


def classifier(width):
    return dict(
        type='ImageClassifier',
        data_preprocessor=dict(type='ClsDataPreprocessor', num_classes=3, mean=[120.0] * 3, std=[60.0] * 3),
        backbone=dict(type='FuzzTiny', width=width),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=3, in_channels=2 * width, loss=dict(type='CrossEntropyLoss')),
    )


def segmentor(width):
    return dict(
        type='EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor', mean=[120.0] * 3, std=[60.0] * 3, size=(SIDE, SIDE)),
        backbone=dict(type='FuzzTiny', width=width, out_indices=(0, 1)),
        decode_head=dict(
            type='FCNHead', in_channels=2 * width, in_index=1, channels=4, num_convs=1, concat_input=False,
            num_classes=3, norm_cfg=dict(type='BN'),
        ),
        auxiliary_head=dict(
            type='FCNHead', in_channels=width, in_index=0, channels=4, num_convs=1, concat_input=False,
            num_classes=3, norm_cfg=dict(type='BN'),
        ),
        test_cfg=dict(mode='whole'),
    )  # fmt: skip


def detector(width):
    return dict(
        type='RetinaNet',
        data_preprocessor=dict(type='DetDataPreprocessor', mean=[120.0] * 3, std=[60.0] * 3, pad_size_divisor=8),
        backbone=dict(type='FuzzTiny', width=width, out_indices=(0, 1)),
        neck=dict(type='FPN', in_channels=[width, 2 * width], out_channels=4, num_outs=2),
        bbox_head=dict(
            type='RetinaHead', num_classes=3, in_channels=4, stacked_convs=1, feat_channels=4,
            anchor_generator=dict(
                type='AnchorGenerator', octave_base_scale=2, scales_per_octave=1, ratios=[1.0], strides=[2, 4]
            ),
        ),
        train_cfg=dict(
            assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
            sampler=dict(type='PseudoSampler'), allowed_border=-1, pos_weight=-1,
        ),
        test_cfg=dict(nms_pre=10, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=5),
    )  # fmt: skip


MODELS = {'mmpretrain': classifier, 'mmseg': segmentor, 'mmdet': detector}
LOGITS = {'mmpretrain': 'head.fc', 'mmseg': 'decode_head.conv_seg', 'mmdet': 'bbox_head.retina_cls#*'}
CONV = dict(type='lckd_mm.ConvBN')


def config(host, checkpoint, terms, **taps):
    """A whole distillation config, the teacher twice as wide."""
    model = MODELS[host]
    taps = taps or dict(low='backbone.layer1@preact', high='backbone.layer2@preact', logits=LOGITS[host])
    return dict(
        student=model(2),
        teacher=dict(model=model(4), checkpoint=str(checkpoint)),
        taps=taps,
        terms=terms,
        dry_run_size=SIDE,
    )


def one_step(arguments, host):
    """Build, load the teacher, and train for one step: every loss and every gradient is finite."""
    DefaultScope.get_instance(f'fuzz-{next(_NAMES)}', scope_name=host)
    MMLogger.get_instance('fuzz', log_level='CRITICAL')  # init_weights lists every parameter
    torch.manual_seed(0)
    model = Distiller(**arguments)
    model.init_weights()
    model.train()
    train(model)


def train(model):
    samples = fabricate_samples(model.student, 4, (SIDE, SIDE))
    torch.manual_seed(1)
    losses = model(torch.randn(4, 3, SIDE, SIDE), samples, mode='loss')
    total, logged = model.parse_losses(losses)
    for name, value in logged.items():
        if not math.isfinite(value.item()):
            raise ArithmeticError(f'{name} is {value.item()}')
    total.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            raise ArithmeticError(f'the gradient of {name} is not finite')


_NAMES = itertools.count()


def forget():
    """mmengine keeps scopes, loggers, message hubs and visualizers by name: drop what the last run has left."""
    for logger in MMLogger._instance_dict.values():
        for handler in list(logger.handlers):
            handler.close()
    pending = [ManagerMixin]
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        kind._instance_dict.clear()
