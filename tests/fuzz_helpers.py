"""Mutations of valid configs, a judge of how a malformed one ends, and the smallest hosts."""

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
from run_helpers import HOSTS, count
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
}
#: Seconds that one config may take before it counts as hung.
PATIENCE = 20
PACKAGE = str(Path(lckd_mm.__file__).parent)
OURS = (ValueError, KeyError, FileNotFoundError, TypeError, ImportError)
SIDE = 16

VALUES = (
    None, True, False, 0, 1, 2, -1, -7, 0.25, 1.5, -2.5, math.nan, math.inf, -math.inf, '', 'zzz', '1', 'nan', [],
    ['zzz'], [['zzz']], [1, 2], [None], [math.nan, 1.0], (), (3, 4), {}, dict(zzz=1),
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


def fuzz(theme, strategy, run, names):
    """Run distinct cases of a strategy until the theme's number is reached, and report those that ended badly.

    ``run(case)`` returns a function, or None to skip the case; a message must contain one of the words ``names(case)``.
    """
    wanted, seen, ends, bad = count(*PLAN[theme]), set(), Counter(), {}

    @settings(
        max_examples=6 * wanted, derandomize=True, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def each(case):
        go = None if len(seen) >= wanted or repr(case) in seen else run(case)
        if go is None:
            return
        seen.add(repr(case))
        fault, end = None, 'raised'
        try:
            with patience():
                go()
            end = 'trained'
        except Hung:
            fault = f'hung for {PATIENCE} s'
        except Exception as error:
            fault = fault_of(error, names(case))
        ends[end] += 1
        if fault:
            bad.setdefault(re.sub(r'[\d.]+', '#', fault)[:160], (case, fault))

    each()
    print(f'{theme}: {len(seen)} malformed, {dict(ends)}')
    assert set(ends) == {'raised', 'trained'} or wanted < 100, f'all {dict(ends)}'
    lines = [f'  {case!r}\n    {fault}' for case, fault in itertools.islice(bad.values(), 40)]
    assert not bad, f'{len(bad)} kinds of bad ends:\n' + '\n'.join(lines)
    assert len(seen) >= wanted, f'{len(seen)} tried, {wanted} wanted'


def fault_of(error, names):
    """What is wrong with an error: not a sentence that the package or a host raises, or it names none of ``names``."""
    frame = error.__traceback__
    while frame.tb_next:
        frame = frame.tb_next
    file = frame.tb_frame.f_code.co_filename
    line = linecache.getline(file, frame.tb_lineno).strip()
    text = one_line(error)
    where = f'{type(error).__name__} at {file}: {line!r}: {text[:300]}'
    if not isinstance(error, OURS):
        return f'a bare {where}'
    raised = line.startswith('raise') and (file.startswith(PACKAGE) or 'site-packages' in file)
    # Python's own sentence on an argument that a signature has not names class and argument.
    if not raised and not re.search(r'(unexpected keyword argument|missing \d required .* argument)', text):
        return f'nobody raised {where}'
    if not any(name and re.search(rf'(?<!\w){re.escape(name)}(?!\w)', text) for name in names):
        return f'names none of {names[:8]}: {where}'
    return f'{len(text)} letters: {where}' if len(text) > 1500 else None


# ---- hosts


class Pair(nn.Module):
    def forward(self, x):
        return x, 2 * x


class Named(nn.Module):
    def forward(self, x):
        return dict(x=x)


@MMENGINE_MODELS.register_module(name='FuzzTiny', force=True)
class Tiny(nn.Module):
    """Four stages, and one of everything that a tap can meet; ``out_indices`` as the hosts have it."""

    def __init__(self, width=4, out_indices=(3,)):
        super().__init__()

        def stage(a, b):
            return nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU(inplace=True))

        self.layer1, self.layer2 = stage(3, width), stage(width, 2 * width)
        self.layer3, self.layer4 = stage(2 * width, 4 * width), stage(4 * width, 8 * width)
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
        c = self.layer3(b)
        return tuple((a, b, c, self.layer4(c))[i] for i in self.out_indices)


def small(host, width):
    """The host's model of run_helpers with the backbone above."""
    model = HOSTS[host][0](width)
    model['backbone'] = dict(type='FuzzTiny', width=width, out_indices=(3,) if host == 'mmpretrain' else (0, 1, 2, 3))
    if host == 'mmpretrain':
        model['data_preprocessor'] = copy.deepcopy(HOSTS[host][3]['data_preprocessor'])
    return model


LOGITS = {host: taps['logits'] for host, (_, _, taps, _) in HOSTS.items()}
CONV = dict(type='lckd_mm.ConvBN')


def config(host, checkpoint, terms, **taps):
    """A whole distillation config, the teacher twice as wide."""
    taps = taps or dict(low='backbone.layer1@preact', high='backbone.layer2@preact', logits=LOGITS[host])
    return dict(
        student=small(host, 2),
        teacher=dict(model=small(host, 4), checkpoint=str(checkpoint)),
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
