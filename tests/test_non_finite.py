"""A nan or infinity in a term: who, where and when; what is left of the run where it stops, and where it goes on."""

import re
import socket
from itertools import pairwise

import pytest
import torch
from mmengine.logging import MessageHub
from poison import States
from run_helpers import HOOK, config, count, distiller, run, scenes, segmentor, teacher_file

from lckd_mm.distillation import NonFiniteError
from lckd_mm.distillation.finite import all_finite, origin
from lckd_mm.distillation.term import Batch
from lckd_mm.hooks.non_finite import GradientWatch, NonFiniteHook
from lckd_mm.hosts import build_model, fabricate_samples

WATCH = dict(type='lckd_mm.NonFiniteHook')
SKIP = dict(type='lckd_mm.NonFiniteHook', action='skip')


@pytest.fixture
def built(teacher_file):
    """A distilled segmentor in training, with images and samples: ``model, images, samples``."""

    def build(**terms):
        teacher, file = teacher_file('mmseg')
        cfg = distiller('mmseg', segmentor(4), teacher, file)
        cfg['terms'].update(terms)
        torch.manual_seed(0)
        model = build_model(cfg, 'mmseg')
        model.init_weights()
        return model.train(), torch.randn(2, 3, 64, 64), fabricate_samples(model.student, 2, (64, 64))

    return build


def poisoned(at, how='value', on='stage3', rank=None, **term):
    return dict(loss=dict(type='lckd_mm.PoisonLoss', at=at, how=how, rank=rank), on=on,
                connector=dict(type='lckd_mm.ConvBN'), **term)  # fmt: skip


def nan_in(module):
    with torch.no_grad():
        module.weight.fill_(torch.nan)


def test_all_finite():
    good = torch.tensor([1.0, -3e38])
    for bad in (torch.nan, torch.inf, -torch.inf):
        for place in range(70):  # vectorised kernels treat the ends of a tensor apart
            x = torch.zeros(70)
            x[place] = bad
            assert not all_finite([good, x])
    assert all_finite([good, torch.empty(0, 3), good.half().fill_(65504)]) and all_finite([])


@pytest.mark.parametrize('iteration', [None, 36])
def test_the_terms_own_computation_is_named_with_its_largest_feature(built, iteration):
    model, images, samples = built(loss_bad=poisoned([1]))
    if iteration is not None:
        MessageHub.get_current_instance().update_info('iter', iteration)
    with pytest.raises(NonFiniteError) as error:
        model.loss(images, samples)
    when = 'this iteration' if iteration is None else 'iteration 37'  # as the log counts
    assert f"term 'loss_bad' is nan in {when}: its features are finite, the largest " in str(error.value)
    assert re.search(r"\d at (student|teacher) tap 'stage3' \('backbone\.layer3@preact'\)", str(error.value))
    assert 'PoisonLoss' in str(error.value) and 'nothing has been updated' in str(error.value)
    assert "action='skip'" in str(error.value)


SPOILED = {
    "student tap 'stage2'.*the student itself": lambda model, images: nan_in(model.student.backbone.layer2[0].bn1),
    "teacher tap 'stage3' .*checkpoint": lambda model, images: nan_in(model.teacher.model.backbone.layer3[1].bn2),
    "connector at student tap 'stage2'": lambda model, images: nan_in(model.terms['loss_lipschitz'].connectors[1][0]),
    'the batch of images': lambda model, images: images[0, 0].fill_(torch.inf),
}


@pytest.mark.parametrize('where', SPOILED)
def test_the_origin_is_named(where, built):
    model, images, samples = built()
    SPOILED[where](model, images)
    with pytest.raises(NonFiniteError, match=f"'loss_lipschitz' is .*{where}"):
        model.loss(images, samples)


def test_float16_is_named_where_it_overflows(built):
    model, images, samples = built()
    with torch.no_grad():
        model.teacher.model.backbone.layer2[1].bn2.weight.fill_(1e7)
    model.loss(images, samples)  # no matter in float32
    # The teacher alone: not every processor has float16 for the student's own loss.
    with torch.autocast('cpu', torch.float16):
        features = model.teacher(model.teacher_taps, ['stage1', 'stage2'], images, samples)
    finite = {name: torch.ones(1) for name in model.student_taps.addresses} | dict(stage1=torch.zeros(0, 2))
    batch = Batch(finite, finite | features, images)
    text = origin(model.terms['loss_lipschitz'], batch, {})
    assert "teacher tap 'stage2'" in text and '65504' in text and "precision='bf16'" in text


def test_a_students_own_nan_is_its_own_matter(built):
    model, images, samples = built()
    nan_in(model.student.auxiliary_head.conv_seg)
    losses = model.loss(images, samples)
    assert losses['aux.loss_ce'].isnan() and losses['loss_kd'].isfinite()


def test_the_watch_tells_terms_at_one_tap_apart():
    watch = GradientWatch()
    x = torch.tensor([0.0, 4.0], requires_grad=True)
    bad, good = watch.follow('loss_bad', 'a', x), watch.follow('loss_good', 'a', [x])[0]
    (bad.sqrt().sum() * 0 + good.square().sum()).backward()
    assert watch.broken() == [('loss_bad', 'a')]
    with pytest.raises(NonFiniteError, match=r"'loss_bad' is finite .* at student tap 'a': .*Linear"):
        watch.check({'loss_bad': _Named(), 'loss_good': _Named()})
    watch.check({'loss_bad': _Named()})  # it has forgotten
    # Noted over several backward passes, as in gradient accumulation: a later good one does not hide a bad one.
    for root in (torch.sqrt, torch.square):
        (root(watch.follow('loss_bad', 'a', x)).sum() * 0).backward()
    assert watch.broken() == [('loss_bad', 'a')]


class _Named(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.loss, self.loss_name = torch.nn.Linear(1, 1), 'Linear'


def test_the_watch_sees_a_terms_own_parameters():
    term = _Named()
    term.loss.weight.grad = torch.full((1, 1), torch.inf)
    with pytest.raises(NonFiniteError, match="at the term's own parameters"):
        GradientWatch().check({'loss_a': term})


def bad_run(scenes, tmp_path, teacher_file, at, how='value', hook=None, iters=8, **extra):
    """A run with a term that goes wrong, its states, and what it raised."""
    teacher, file = teacher_file('mmseg')
    model = distiller('mmseg', segmentor(4), teacher, file)
    model['terms']['loss_bad'] = poisoned(at, how)
    cfg = config('mmseg', scenes, tmp_path, model, iters=iters, **extra)
    cfg.default_hooks.checkpoint.interval = 2
    cfg.default_hooks.distillation = HOOK
    if hook is not None:
        cfg.default_hooks.non_finite = hook
    states, raised, runner = States(), None, None
    try:
        runner = run(cfg, states)
    except NonFiniteError as error:
        raised = str(error)
    return runner, states.states, raised


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize('how', ['value', 'gradient'])
def test_by_default_it_stops_before_anything_is_updated(scenes, tmp_path, teacher_file, how):
    _, states, raised = bad_run(scenes, tmp_path, teacher_file, [4], how, WATCH)
    assert "term 'loss_bad' is " in raised and 'in iteration 4' in raised
    if how == 'gradient':
        assert "its gradient holds nan or infinity at student tap 'stage3'" in raised
    assert len(states) == 4 and all(v.isfinite().all() for v in states[-1].values())
    # The last good checkpoint is the last one, and whole.
    assert (tmp_path / 'last_checkpoint').read_text().endswith('iter_2.pth')
    assert [p.name for p in tmp_path.glob('*.pth') if 'iter' in p.name] == ['iter_2.pth']
    saved = torch.load(tmp_path / 'iter_2.pth')
    for key, value in saved['state_dict'].items():
        known = states[2].get(key, states[2].get(f'student.{key}'))
        assert torch.equal(value, known), key


def test_a_value_stops_without_the_hook_too(scenes, tmp_path, teacher_file):
    _, states, raised = bad_run(scenes, tmp_path, teacher_file, [2])
    assert "term 'loss_bad' is nan in iteration 2" in raised and len(states) == 2


@pytest.mark.parametrize('how', count(['value', 'gradient'], ['value']))
def test_skipping_leaves_everything_as_it_was(scenes, tmp_path, teacher_file, how):
    hooks = [dict(type='EMAHook', momentum=0.5)]
    runner, states, raised = bad_run(scenes, tmp_path, teacher_file, [1, 4, 5], how, SKIP, custom_hooks=hooks, iters=7)
    assert raised is None and len(states) == 8
    for i in range(1, 8):
        # Statistics, connectors and momentum among them.
        assert same(states[i], states[i - 1]) == (i in (1, 4, 5)), i
        assert all(v.isfinite().all() for v in states[i].values())
    (hook,) = [h for h in runner.hooks if isinstance(h, NonFiniteHook)]
    assert hook.skipped == 3
    # Nothing is left of the hook.
    assert 'train_step' not in runner.model.__dict__ and all(
        term.student.follow is None for term in runner.model.terms.values()
    )
    assert not runner.optim_wrapper.optimizer._optimizer_step_pre_hooks
    averages = torch.load(tmp_path / 'iter_7.pth')
    assert all(v.isfinite().all() for v in averages['state_dict'].values())


@pytest.mark.parametrize(
    'bad, how', count([(3, 'value'), (4, 'value'), (3, 'gradient'), (4, 'gradient')], [(3, 'value'), (4, 'gradient')])
)
def test_skipping_leaves_out_all_batches_of_an_accumulated_update(scenes, tmp_path, teacher_file, bad, how):
    wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.02, momentum=0.9), accumulative_counts=2)
    teacher, file = teacher_file('mmseg')
    model = distiller('mmseg', segmentor(4), teacher, file)
    model['terms']['loss_bad'] = poisoned([bad], how)
    cfg = config('mmseg', scenes, tmp_path, model, iters=8)
    cfg.optim_wrapper = wrapper
    cfg.default_hooks.update(distillation=HOOK, non_finite=SKIP)
    states = States()
    runner = run(cfg, states)
    weights = [
        {k: v for k, v in state.items() if 'running' not in k and 'num_batches' not in k} for state in states.states
    ]
    moved = [not same(a, b) for a, b in pairwise(weights)]
    # A gradient is looked at when it would be used, after the second batch; the loss's own call count goes on but for
    # a batch that is not run at all.
    assert moved == [False, True, False, False, False, True, False, True]
    assert runner.optim_wrapper._inner_count == 8
    assert all(v.isfinite().all() for v in states.states[-1].values())


def test_skipping_gives_up(scenes, tmp_path, teacher_file):
    hook = dict(SKIP, patience=2)
    _, states, raised = bad_run(scenes, tmp_path, teacher_file, [2, 4, 5, 6], hook=hook)
    assert raised.startswith('2 updates in a row ') and 'iteration 6' in raised
    assert len(states) == 6 and same(states[5], states[3])


def test_training_with_the_hook_is_the_same_to_the_bit(scenes, tmp_path, teacher_file):
    ends = [
        bad_run(scenes, tmp_path / str(i), teacher_file, [], hook=hook, iters=3)[1][-1]
        for i, hook in enumerate(count((None, SKIP, WATCH), (None, SKIP)))
    ]
    assert all(same(ends[0], end) for end in ends[1:])


@pytest.mark.parametrize('how, action', [('value', 'skip'), ('gradient', 'skip'), ('gradient', 'stop')])
@pytest.mark.full
def test_ranks_agree(scenes, tmp_path, teacher_file, how, action):
    """What goes wrong on one rank is left out, or stops, on both."""
    from poison import train_rank

    teacher, file = teacher_file('mmseg')
    model = distiller('mmseg', segmentor(4), teacher, file)
    model['terms']['loss_bad'] = poisoned([3], how, rank=1)
    cfg = config('mmseg', scenes, tmp_path, model, iters=5)
    cfg.default_hooks.update(distillation=HOOK, non_finite=dict(type='lckd_mm.NonFiniteHook', action=action))
    cfg.dump(tmp_path / 'config.py')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = str(s.getsockname()[1])
    torch.multiprocessing.spawn(train_rank, (port, str(tmp_path / 'config.py'), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f'rank{r}.pth') for r in range(2))
    if action == 'stop':
        # The connector's gradient is that of both ranks.
        assert "'loss_bad' is finite in iteration 3" in first['raised'] and 'over all ranks' in first['raised']
        assert (
            "'loss_bad' is finite in iteration 3" in second['raised'] and "at student tap 'stage3'" in second['raised']
        )
        assert len(first['states']) == len(second['states']) == 3
        return
    assert first['raised'] == second['raised'] == ''
    for rank in (first, second):
        moved = [not same(a, b) for a, b in pairwise(rank['states'])]
        assert moved == [True, True, False, True, True]
    weights = [
        {k: v for k, v in rank['states'][-1].items() if 'running' not in k and not k.startswith('terms')}
        for rank in (first, second)
    ]
    assert same(*weights)  # statistics are each rank's own
