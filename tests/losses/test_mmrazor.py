"""The factors of docs/from-mmrazor.md: mmrazor's formulas by hand, times the factor, are the losses here."""

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.structures import DataSample

from lckd_mm.losses import (
    ABLoss,
    ATLoss,
    CWDLoss,
    DISTLoss,
    DKDLoss,
    FitNetsLoss,
    FTLoss,
    KDLoss,
    MGDLoss,
    OFDLoss,
    PKDLoss,
    RKDLoss,
    WSLDLoss,
)

B, C, H, W, TAU = 4, 5, 6, 3, 2.0
LABELS = [1, 0, 4, 1]


def features(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [[torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes] for _ in range(2)]


SCORES, SCORE_MAPS = features((B, C)), features((B, C, H, W))
LAYERS = features((B, 2, 8, 8), (B, 3, 4, 4), (B, 4, 2, 2))
EIGHTHS = (0.25, 0.5, 1.0)


def kl(reduction):
    return lambda s, t: F.kl_div((s / TAU).log_softmax(1), (t / TAU).softmax(1), reduction=reduction) * TAU**2


def channel_wise(s, t):
    s, t = s.flatten(2) / TAU, t.flatten(2) / TAU
    return (t.softmax(2) * (t.log_softmax(2) - s.log_softmax(2))).sum() * TAU**2 / (s.shape[0] * s.shape[1])


def decoupled(s, t):
    mask = F.one_hot(torch.tensor(LABELS), C).bool()

    def binary(x):
        p = (x / TAU).softmax(1)
        return torch.stack([p[mask], p[~mask].view(B, -1).sum(1)], 1)

    target = F.kl_div(binary(s).log(), binary(t), reduction='batchmean')
    rest = [x[~mask].view(B, -1) / TAU for x in (s, t)]
    return TAU**2 * (target + 6 * F.kl_div(rest[0].log_softmax(1), rest[1].softmax(1), reduction='batchmean'))


def attention(s, t):
    return (F.normalize(s.pow(2).mean(1).flatten(1)) - F.normalize(t.pow(2).mean(1).flatten(1))).pow(2).mean()


def factor(s, t):
    return F.l1_loss(F.normalize(s.flatten(1)), F.normalize(t.flatten(1)))


def boundaries(s, t):
    off = (s + 1) ** 2 * ((s > -1) & (t <= 0))
    return (off + (s - 1) ** 2 * ((s <= 1) & (t > 0))).sum() / len(s) / 1000 * 3


def overhaul(s, t):
    return ((s - t) ** 2 * ((s > t) | (t > 0))).sum() / len(s) / 1000


def correlation(s, t):
    def norm(x):
        rows = x.transpose(0, 1).flatten(1)
        return (rows - rows.mean(1, keepdim=True)) / (rows.std(1, keepdim=True) + 1e-6)

    return F.mse_loss(norm(s), norm(t)) / 2


def generated(s, t):
    return F.mse_loss(s, t, reduction='sum') / len(s) * 2e-5


def relations(s, t):
    def distances(x):
        d = torch.cdist(x, x)
        return d / d[d > 0].mean()

    def angles(x):
        e = F.normalize(x[None] - x[:, None], dim=2)
        return e @ e.mT

    return 25 * F.smooth_l1_loss(distances(s), distances(t)) + 50 * F.smooth_l1_loss(angles(s), angles(t))


def correlated(s, t):
    def least(a, b):
        a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
        return 1 - ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)).mean()

    s, t = (s / TAU).softmax(1), (t / TAU).softmax(1)
    return TAU**2 * (2 * least(s, t) + 3 * least(s.T, t.T))


def soft_cross_entropy(s, t):
    return -((t / TAU).softmax(1) * (s / TAU).log_softmax(1)).sum(1)


def weighted_soft_labels(s, t):
    with torch.no_grad():
        ours, theirs = (F.cross_entropy(x, torch.tensor(LABELS), reduction='none') for x in (s, t))
        weight = 1 - torch.exp(-(ours / (theirs + 1e-7)))
    return TAU**2 * (weight * soft_cross_entropy(s, t)).mean()


def layers(formula, weights=(1, 1, 1)):
    """One of mmrazor's terms a layer, added up with their loss_weight."""
    return lambda s, t: sum(w * formula(a, b) for w, a, b in zip(weights, s, t))


def one(formula):
    return lambda s, t: formula(s[0], t[0])


@pytest.mark.parametrize(
    ('mmrazor', 'ours', 'nets', 'times'),
    [
        (one(kl('batchmean')), KDLoss(TAU), SCORES, 1),
        (one(kl('batchmean')), KDLoss(TAU), SCORE_MAPS, H * W),
        (one(kl('mean')), KDLoss(TAU), SCORES, 1 / C),
        (layers(channel_wise), CWDLoss(TAU), LAYERS, 3),
        (one(decoupled), DKDLoss(TAU, beta=6.0), SCORES, 1),
        (one(correlated), DISTLoss(2.0, 3.0, TAU), SCORES, 1),
        (layers(attention), ATLoss(), LAYERS, 3),
        (layers(factor), FTLoss(), LAYERS, 3),
        (layers(boundaries, EIGHTHS), ABLoss(), LAYERS, 3 / 1000),
        (layers(overhaul, EIGHTHS), OFDLoss(), LAYERS, 1 / 1000),
        (layers(correlation), PKDLoss(), LAYERS, 1),
        (layers(generated), MGDLoss(), LAYERS, 2e-5),
        (layers(F.mse_loss), FitNetsLoss(), LAYERS, 3),
        (one(relations), RKDLoss(), SCORES, 1),
    ],
    ids=[
        'KL',
        'KL of maps',
        'KL, mean',
        'CWD',
        'DKD',
        'DIST',
        'AT',
        'FT',
        'AB',
        'OFD',
        'PKD',
        'MGD',
        'L2, div_element',
        'RKD',
    ],
)
def test_a_weight_here_is_the_one_there_times_a_factor(mmrazor, ours, nets, times):
    student, teacher = nets
    extras = {}
    if isinstance(ours, DKDLoss):
        extras['data_samples'] = [DataSample().set_gt_label(label) for label in LABELS]
    value = times * ours(student, teacher, **extras)
    torch.testing.assert_close(value, mmrazor(student, teacher), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ('mmrazor', 'ours'),
    [
        (lambda s, t: TAU**2 * soft_cross_entropy(s, t).mean(), KDLoss(TAU)),
        (weighted_soft_labels, WSLDLoss(TAU)),
    ],
    ids=['KDSoftCELoss', 'WSLD'],
)
def test_the_gradient_here_is_the_one_there(mmrazor, ours):
    student, teacher = (scores[0] for scores in SCORES)
    student = student.clone().requires_grad_()
    extras = dict(data_samples=[DataSample().set_gt_label(label) for label in LABELS])
    gradients = (
        torch.autograd.grad(of, student)[0] for of in (ours(student, teacher, **extras), mmrazor(student, teacher))
    )
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=0)
