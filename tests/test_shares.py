"""A weight of 'share:p' keeps a term at that share of the loss."""

import pytest
import torch
from run_helpers import HOOK, config, distiller, run, scalars, scenes, segmentor, teacher_file

from lckd_mm.distillation.shares import HORIZON, START, RunningShare, parse_share, share_weights, sum_of


@pytest.mark.parametrize(
    'weight', ['share:1', 'share:0', 'share:', 'share:x', '0.3', 'part:0.3', 'share:-0.1', 'share:nan']
)
def test_what_is_no_share_is_refused(weight):
    with pytest.raises(ValueError, match=rf"term 'x': weight must be .*'start:0.5', .*'share:0.3', got '{weight}'"):
        parse_share("term 'x'", weight)


def test_the_weights_by_hand():
    """Two terms at a half and a quarter: the rest, a quarter of the loss, is that of the others."""
    running = dict(a=RunningShare(0.5), b=RunningShare(0.25))
    weights = share_weights(running, dict(a=torch.tensor(4.0), b=torch.tensor(-10.0)), torch.tensor(3.0), True)
    assert [w.item() for w in weights.values()] == [0.5 / 0.25 * 3 / 4, pytest.approx(0.25 / 0.25 * 3 / 10)]
    # Then with the means of both batches: of a 3, of b 6, of the others 2.
    weights = share_weights(running, dict(a=torch.tensor(2.0), b=torch.tensor(2.0)), torch.tensor(1.0), True)
    assert [w.item() for w in weights.values()] == [pytest.approx(2 * 2 / 3), pytest.approx(2 / 6)]
    # A batch that does not count, and one that is not finite, change nothing.
    for value, training in ((7.0, False), (float('nan'), True)):
        share_weights(running, dict(a=torch.tensor(value), b=torch.tensor(1.0)), torch.tensor(1.0), training)
        assert running['a'].means.tolist() == [3.0, 2.0] and running['a'].seen == 2


def test_a_term_that_is_zero_gets_no_weight_and_old_batches_are_forgotten():
    running = dict(a=RunningShare(0.5))
    assert share_weights(running, dict(a=torch.tensor(0.0)), 1.0, True)['a'] == 0
    for value in [1.0] * 200 + [3.0] * 500:
        weight = share_weights(running, dict(a=torch.tensor(value)), 1.0, True)['a']
    assert running['a'].means[0] == pytest.approx(3 - 2 * (1 - 1 / HORIZON) ** 500, abs=1e-3)
    assert weight == pytest.approx(1 / 3, rel=1e-2)


def test_a_weight_from_the_start_stays_after_twenty_batches():
    running = dict(a=RunningShare(0.5, at_start=True))
    values = [1.0 + i for i in range(40)]
    weights = [share_weights(running, dict(a=torch.tensor(v)), 3.0, True)['a'].item() for v in values]
    assert weights[0] == 3.0 and weights[1] == pytest.approx(3 / 1.5)
    assert set(weights[START - 1 :]) == {weights[-1]} and weights[-1] == pytest.approx(3 / (1 + 19 / 2))
    assert running['a'].seen == START
    kinds = [parse_share('x', weight) for weight in (0.3, 'start:0.3', 'share:0.3')]
    assert kinds[0] is None and [(of.share, of.at_start) for of in kinds[1:]] == [(0.3, True), (0.3, False)]


def test_the_total_is_the_host_s(scenes):
    losses = dict(loss_a=torch.tensor([1.0, 3.0]), loss_b=[torch.tensor(2.0), torch.tensor(4.0)], acc=torch.tensor(9.0))
    from lckd_mm.hosts import build_model

    assert sum_of(losses) == build_model(segmentor(4), 'mmseg').parse_losses(losses)[0] == 8


def test_the_share_is_held_over_a_run(tmp_path, scenes, teacher_file):
    """On average: each batch has the mean's weight, and its own values."""
    teacher, path = teacher_file('mmseg')
    model = distiller('mmseg', segmentor(4), teacher, path, lipschitz='share:0.3', kd=0.1)
    cfg = config('mmseg', scenes, tmp_path / 'run', model, iters=25)
    cfg.default_hooks.distillation = HOOK
    cfg.default_hooks.logger.interval = 1
    runner = run(cfg)
    logged = [entry for entry in scalars(tmp_path / 'run') if 'loss_lipschitz' in entry]
    assert logged[0]['loss_lipschitz'] / logged[0]['loss'] == pytest.approx(0.3, rel=1e-3)  # exact in the first batch
    assert 0.2 < sum(e['loss_lipschitz'] / e['loss'] for e in logged) / len(logged) < 0.4
    term = runner.model.terms['loss_lipschitz']
    assert term.running.seen == 25 and runner.model.terms['loss_kd'].running is None
    state = torch.load(tmp_path / 'run' / 'iter_25.pth', weights_only=False)
    assert any(key.endswith('loss_lipschitz.running.means') for key in _keys(state))


def _keys(node, prefix=''):
    for key, value in node.items() if isinstance(node, dict) else ():
        yield f'{prefix}.{key}'
        yield from _keys(value, f'{prefix}.{key}')


def test_shares_that_leave_nothing_are_refused(tmp_path, teacher_file):
    from lckd_mm.hosts import build_model

    teacher, path = teacher_file('mmseg')
    model = distiller('mmseg', segmentor(4), teacher, path, lipschitz='share:0.6', kd='share:0.5')
    with pytest.raises(ValueError, match=r"'loss_lipschitz', 'loss_kd' ask for 1.1 of the loss in all; leave some"):
        build_model(model, 'mmseg')
