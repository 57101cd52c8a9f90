"""Adversarial shells: each side's own gradient in one value, every penalty, and what is refused."""

import pytest
import torch
from torch import nn

from lckd_mm.functional import gradient_norms, product_bound
from lckd_mm.losses import AdversarialLoss, GradientPenalty, LGANLoss, LSGANLoss
from lckd_mm.losses.critics import ConvCritic

CRITIC = dict(type='lckd_mm.ConvCritic', widths=(8,))


def adversarial(penalty='gp', **extra):
    torch.manual_seed(0)
    penalty = penalty and dict(type='lckd_mm.GradientPenalty', kind=penalty)
    return AdversarialLoss(CRITIC, channels=[4], penalty=penalty, **extra)


def features(seed=1):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 6, 4, 4, 4, generator=generator)
    return a.requires_grad_(), b + 1


@pytest.mark.parametrize('channels, shape', [(4, (3, 4, 8, 8)), (4, (3, 4, 1, 1)), (4, (3, 4))])
def test_critic_gives_a_number_a_sample_from_that_sample_alone(channels, shape):
    critic, x = ConvCritic(channels), torch.randn(shape)
    assert critic(x).shape == (3,)
    torch.testing.assert_close(critic(x)[1:2], critic(x[1:2]))
    with pytest.raises(ValueError, match='ConvCritic: expected'):
        critic(torch.randn(3, 5, 8, 8))
    with pytest.raises(ValueError, match='odd'):
        ConvCritic(4, kernel=2)


def test_losses_are_their_functions():
    fake, real = torch.tensor([0.5, -0.5]), torch.tensor([1.0, 0.0])
    assert LSGANLoss().critic(fake, real) == 0.25 + 0.5
    assert LSGANLoss().student(fake) == (0.25 + 2.25) / 2
    assert LGANLoss('x').critic(fake, real) == 0 - 0.5
    assert LGANLoss('x', student='phi').student(fake + 1) == -1
    assert LGANLoss().student(fake + 1) == -1
    for wrong in (dict(phi='y'), dict(student='both')):
        with pytest.raises(ValueError, match='LGANLoss: unknown'):
            LGANLoss(**wrong)


@pytest.mark.parametrize('student', LGANLoss.FORMS)
def test_one_value_gives_each_side_its_own_gradient_and_no_other(student):
    loss = adversarial(loss=dict(type='lckd_mm.LGANLoss', student=student))
    ours, theirs = features()
    theirs = theirs.requires_grad_()
    loss(ours, theirs).backward()
    critic = loss.critics[0]
    # the student's: through a critic that stands still
    (expected,) = torch.autograd.grad(loss.loss.student(critic(ours)), ours)
    torch.testing.assert_close(ours.grad, expected)
    assert theirs.grad is None
    # the critic's: on features that stand still, with the penalty
    loss.penalty.draws.zero_()
    fake, real = ours.detach(), theirs.detach()
    value = loss.loss.critic(critic(fake), critic(real)) + loss.penalty(critic, fake, real)
    for parameter, gradient in zip(critic.parameters(), torch.autograd.grad(value, list(critic.parameters()))):
        torch.testing.assert_close(parameter.grad, gradient)
    assert all(p.grad is not None for p in loss.parameters())  # DDP has nothing to wait for


@pytest.mark.parametrize('kind', GradientPenalty.KINDS)
def test_penalty_is_its_formula_at_the_points_it_draws(kind):
    torch.manual_seed(0)
    critic, penalty = ConvCritic(4, (8,)), GradientPenalty(kind, weight=0.5, target=0.01, multiplier=3.0)
    fake, real = (x.detach() for x in features())
    state = torch.get_rng_state()
    got = penalty(critic, fake, real)
    assert torch.equal(torch.get_rng_state(), state)  # the training's own numbers are left alone
    generator = torch.Generator().manual_seed(torch.initial_seed() + 1)
    s = gradient_norms(critic, torch.lerp(fake, real, torch.rand(6, generator=generator).view(6, 1, 1, 1)))
    layers = product_bound(critic.chain[0], fake[:1]) * product_bound(critic.chain[-2], torch.zeros(1, 8))
    # between the two layers: the mean over 2 x 2 positions, whose norm is 1/2
    expected = {
        'max': 0.5 * s.max() ** 2,
        'gp': 0.5 * ((s - 0.01) ** 2).mean(),
        'lp': 0.5 * ((s - 0.01).clamp(min=0) ** 2).mean(),
        'max-al': 0.5 * (s.max() - 0.01) ** 2 + 3 * (s.max() - 0.01),
        'spectral': 0.5 * (layers / 2) ** 2,
    }
    torch.testing.assert_close(got, expected[kind], rtol=1e-5, atol=0)
    assert penalty.multiplier.item() == pytest.approx(3 + (1e-3 * (s.max().item() - 0.01) if kind == 'max-al' else 0))
    gradients = torch.autograd.grad(got, [p for p in critic.parameters() if p.dim() > 1])
    assert all(g.abs().sum() > 0 for g in gradients)


def test_multiplier_stands_still_in_evaluation_and_is_in_the_state():
    penalty, critic = GradientPenalty('max-al', target=0.0), ConvCritic(4)
    fake, real = (x.detach() for x in features())
    penalty.eval()(critic, fake, real)
    assert penalty.multiplier == 0
    penalty.train()(critic, fake, real)
    with torch.no_grad():
        penalty(critic, fake, real)
    assert penalty.state_dict()['multiplier'] == penalty.multiplier > 0
    assert penalty.state_dict()['draws'] == 3


def test_half_precision_and_autocast_do_not_reach_the_penalty():
    penalty, critic = GradientPenalty('gp'), ConvCritic(4)
    fake, real = (x.detach() for x in features())
    plain = penalty(critic, fake.bfloat16(), real.bfloat16())
    penalty.draws.zero_()
    with torch.autocast('cpu', torch.bfloat16):
        cast = penalty(critic, fake.bfloat16(), real.bfloat16())
    assert cast.dtype == torch.float32 and torch.equal(plain, cast)


def test_several_taps_have_a_critic_each():
    loss = AdversarialLoss(CRITIC, channels=[4, 6])
    a, b = torch.randn(3, 4, 4, 4), torch.randn(3, 6)
    one, two = (AdversarialLoss(CRITIC, channels=[c]) for c in (4, 6))
    one.critics[0], two.critics[0] = loss.critics
    torch.testing.assert_close(loss([a, b], [a + 1, b + 1]), (one(a, a + 1) + two(b, b + 1)) / 2)


def test_what_does_not_fit_is_refused():
    class WithNorm(nn.Sequential):
        def __init__(self, in_channels):
            super().__init__(nn.Conv2d(in_channels, 1, 1), nn.BatchNorm2d(1))

    with pytest.raises(ValueError, match='BatchNorm'):
        AdversarialLoss(dict(type=WithNorm), channels=[4])
    with pytest.raises(ValueError, match='MatchSize'):
        adversarial()(torch.randn(2, 4, 4, 4), torch.randn(2, 4, 2, 2))
    with pytest.raises(ValueError, match=r'\[4\] channels, got \[4, 4\]'):
        adversarial()([torch.randn(2, 4)] * 2, [torch.randn(2, 4)] * 2)
    with pytest.raises(ValueError, match='unknown kind'):
        GradientPenalty('mean')
    with pytest.raises(ValueError, match='at least 0'):
        GradientPenalty(weight=-1)
