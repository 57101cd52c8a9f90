"""Partial teachers: each target by hand, special cases, and the paper's closed forms against autograd."""

import math

import pytest
import torch
import torch.nn.functional as F

from lckd_mm.functional import gradient_rescaling, kd_divergence, partial_target, row_similarities, target_divergence
from lckd_mm.functional.logits import PARTIAL_KINDS

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def arguments(classes=6):
    groups = torch.tensor([0, 0, 1, 1, 1, 2][:classes])
    return dict(
        k=2,
        similarities=row_similarities(torch.randn(classes, 4, dtype=DOUBLE), 0.5, 0.3),
        siblings=groups[:, None] == groups,
        betas=(0.6, 0.05),
        epsilon=0.1,
    )


# Probabilities 1/2, 1/4, 1/8, 1/8 at temperature 2.
LOGITS = 2 * torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=DOUBLE).log()
SIBLINGS = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]).bool()
BY_HAND = {
    'full': ({}, [0.5, 0.25, 0.125, 0.125]),
    'pt': ({}, [0.25, 0.25, 0.25, 0.25]),
    'topk': (dict(k=1), [0.5, 1 / 6, 1 / 6, 1 / 6]),
    'sim': (dict(similarities=torch.eye(4)), [0, 1, 0, 0]),
    'rel': (dict(siblings=SIBLINGS, betas=(0.6, 0.1)), [0.1, 0.6, 0.15, 0.15]),
    'label_smoothing': (dict(epsilon=0.2), [0.05, 0.85, 0.05, 0.05]),
}


@pytest.mark.parametrize('kind', PARTIAL_KINDS)
def test_targets_by_hand(kind):
    extra, expected = BY_HAND[kind]
    value = partial_target(kind, LOGITS, torch.tensor([1]), 2.0, **extra)
    assert value[0].tolist() == pytest.approx(expected, rel=1e-12)


def test_pt_of_the_first_class():
    value = partial_target('pt', LOGITS, torch.tensor([0]), 2.0)
    assert value[0].tolist() == pytest.approx([0.5, 1 / 6, 1 / 6, 1 / 6], rel=1e-12)


@pytest.mark.parametrize('kind', PARTIAL_KINDS)
@pytest.mark.parametrize('shape', [(5, 6), (2, 6, 3, 4)])
def test_they_are_distributions_along_the_classes_of_maps_too(kind, shape):
    teacher = torch.randn(shape, dtype=DOUBLE)
    target = torch.randint(6, (shape[0], *shape[2:]))
    same = arguments()
    value = partial_target(kind, teacher, target, 3.0, **same)
    torch.testing.assert_close(value.sum(1), torch.ones(target.shape, dtype=DOUBLE), rtol=1e-12, atol=0)
    assert value.min() >= 0
    if len(shape) == 4:
        flat = teacher.permute(0, 2, 3, 1).flatten(0, 2)
        rows = partial_target(kind, flat, target.flatten(), 3.0, **same)
        torch.testing.assert_close(value.permute(0, 2, 3, 1).flatten(0, 2), rows, rtol=1e-12, atol=0)


def test_topk_of_all_classes_is_full_and_of_all_but_one_too():
    teacher = torch.randn(5, 6, dtype=DOUBLE)
    expected = partial_target('full', teacher, tau=3.0)
    assert torch.equal(partial_target('topk', teacher, tau=3.0, k=6), expected)
    torch.testing.assert_close(partial_target('topk', teacher, tau=3.0, k=5), expected, rtol=1e-12, atol=0)


def test_no_smoothing_is_the_label_and_pt_of_two_classes_is_full():
    target = torch.tensor([2, 0])
    hard = partial_target('label_smoothing', torch.randn(2, 4), target, epsilon=0.0)
    assert torch.equal(hard, F.one_hot(target, 4).float())
    teacher = torch.randn(3, 2, dtype=DOUBLE)
    full, part = partial_target('full', teacher), partial_target('pt', teacher, torch.tensor([0, 1, 1]))
    torch.testing.assert_close(part, full, rtol=1e-12, atol=0)


def test_similarities_by_hand_with_a_negative_cosine():
    rows = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [1.0, 1.0]], dtype=DOUBLE)
    value = row_similarities(rows, 0.5, 0.3)
    scores = [1, 0, -1, 2**-0.25]  # of the first row: cosines 1, 0, -1 and 1/sqrt 2, to the power of a half
    exps = [math.exp(s / 0.3) for s in scores]
    assert value[0].tolist() == pytest.approx([e / sum(exps) for e in exps], rel=1e-9)
    assert value.argmax(1).tolist() == [0, 1, 2, 3]
    assert value.isfinite().all()
    # Of a convolution as of the layer, whatever the rows' lengths.
    kernel = (rows * torch.tensor([[1.0], [2.0], [3.0], [4.0]]))[:, :, None, None]
    torch.testing.assert_close(row_similarities(kernel, 0.5, 0.3), value, rtol=1e-12, atol=0)


def test_full_is_kd():
    student, teacher = torch.randn(2, 5, 6, dtype=DOUBLE)
    value = target_divergence(student, partial_target('full', teacher, tau=3.0), 3.0) * 9
    torch.testing.assert_close(value, kd_divergence(student, teacher, 3.0), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize('squared', [True, False])
@pytest.mark.parametrize('kind', PARTIAL_KINDS)
def test_the_gradient_and_its_rescaling_are_the_closed_forms(kind, squared):
    student = torch.randn(5, 6, dtype=DOUBLE, requires_grad=True)
    teacher, target, lam, tau = torch.randn(5, 6, dtype=DOUBLE), torch.randint(6, (5,)), 0.7, 3.0
    soft = partial_target(kind, teacher, target, tau, **arguments())
    scale = tau**2 if squared else 1.0

    def objective(z):
        return (1 - lam) * F.cross_entropy(z, target, reduction='sum') + lam * scale * target_divergence(
            z, soft, tau
        ).sum()

    (gradient,) = torch.autograd.grad(objective(student), student)
    q, softened, hot = student.softmax(1), (student / tau).softmax(1), F.one_hot(target, 6)
    closed = (1 - lam) * (q - hot) + lam * scale / tau * (softened - soft)
    torch.testing.assert_close(gradient, closed, rtol=1e-10, atol=1e-14)
    # Finite differences know nothing of either.
    step = torch.zeros(5, 6, dtype=DOUBLE)
    step[3, 2] = 1e-6
    with torch.no_grad():
        slope = (objective(student + step) - objective(student - step)) / 2e-6
    assert gradient[3, 2].item() == pytest.approx(slope.item(), abs=1e-7)
    rows = torch.arange(5)
    task = (q - hot)[rows, target]
    factor = gradient_rescaling(student.detach(), soft, target, tau, lam, 1 - lam, squared)
    torch.testing.assert_close(factor, (gradient[rows, target] / task).detach(), rtol=1e-10, atol=0)
    # Tang et al.'s own form: 1 - lambda + lambda / T (p~ - q~) / (1 - q), without the factor T squared.
    if not squared:
        own = 1 - lam + lam / tau * (soft - softened)[rows, target] / (1 - q[rows, target])
        torch.testing.assert_close(factor, own.detach(), rtol=1e-10, atol=0)


def test_rescaling_holds_where_the_student_is_all_but_sure():
    student = torch.tensor([[40.0, 0.0, 0.0]], dtype=DOUBLE)
    soft = torch.full((1, 3), 1 / 3, dtype=DOUBLE)
    value = gradient_rescaling(student, soft, torch.tensor([0]), 1.0)
    rest = 2 * math.exp(-40) / (1 + 2 * math.exp(-40))
    assert value.item() == pytest.approx(1 + (rest - 2 / 3) / rest, rel=1e-12)


@pytest.mark.parametrize(
    ('kind', 'extra', 'message'),
    [
        ('topk', dict(k=7), 'k must be 1 to 6'),
        ('topk', dict(k=0), 'k must be 1 to 6'),
        ('rel', dict(betas=(0.9, 0.2)), 'betas 0.9 and 0.2 leave -'),
        ('rel', dict(siblings=torch.ones(6, 6).bool()), 'for 0 to 0 classes outside the super-class'),
    ],
)
def test_bad_input(kind, extra, message):
    with pytest.raises(ValueError, match=message):
        partial_target(kind, torch.randn(2, 6), torch.tensor([1, 2]), 1.0, **{**arguments(), **extra})
