import pytest
import torch
from torch import nn

from lckd_mm.losses import JacobianLoss
from lckd_mm.losses.jacobian import unit_gap

DOUBLE = torch.float64


class Pair:
    """A student and a teacher, and what a term hands to the loss."""

    def __init__(self, outputs=5, positions=0):
        torch.manual_seed(0)

        def net():
            layers = [nn.Conv2d(3, outputs, 3)] if positions else [nn.Flatten(), nn.Linear(48, outputs)]
            return nn.Sequential(*layers, nn.Tanh())

        self.student, self.teacher = net(), net()
        self.x = torch.randn(4, 3, 4, 4)
        self.seen = []
        self.teacher.requires_grad_(False)

    def replay(self, images):
        self.seen.append(images.detach())
        return [self.student(images)], [self.teacher(images)]

    def loss(self, **kwargs):
        return JacobianLoss(**kwargs)(*self.replay(self.x), inputs=self.x, replay=self.replay)


def test_difference_is_the_gap_along_the_noise():
    pair = Pair()
    value = pair.loss(sigma=0.2)
    noisy = pair.seen[-1]
    assert (noisy - pair.x).std().item() == pytest.approx(0.2, rel=0.1)
    s, t = (net(noisy) - net(pair.x) for net in (pair.student, pair.teacher))
    torch.testing.assert_close(value, (s - t).square().mean() / 0.2**2)


def moved(student, teacher, sigma):
    """The difference of outputs before and after the noise, one pair per net."""
    (s, s2), (t, t2) = student, teacher
    return JacobianLoss(sigma=sigma)(s, t, inputs=torch.zeros(1, 3, 2, 2), replay=lambda images: ([s2], [t2]))


def test_difference_by_hand_and_without_constants():
    student = torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 4.0]])  # moves by 1 and 2
    teacher = torch.tensor([[5.0, 5.0]]), torch.tensor([[5.0, 6.0]])  # by 0 and 1
    assert moved(student, teacher, 0.5).item() == 4.0
    assert moved([x + 7 for x in student], teacher, 0.5).item() == 4.0
    with pytest.raises(ValueError, match=r'student \(1, 2\) and teacher \(1, 3\) differ in shape'):
        moved(student, (torch.zeros(1, 3),) * 2, 1.0)


def test_difference_is_the_distance_of_the_jacobians_in_expectation():
    torch.manual_seed(0)
    a, b = torch.randn(5, 8, dtype=DOUBLE), torch.randn(5, 8, dtype=DOUBLE)
    x, sigma = torch.randn(1, 8, dtype=DOUBLE).expand(200_000, 8), 0.3
    noisy = x + sigma * torch.randn(200_000, 8, dtype=DOUBLE)
    gap = moved((x @ a.T, noisy @ a.T), (x @ b.T, noisy @ b.T), sigma)
    assert gap.item() == pytest.approx((a - b).square().sum().item() / 5, rel=0.02)


def test_noise_is_the_mean_square_of_noisy_outputs():
    pair = Pair()
    value = pair.loss(mode='noise', sigma=0.2)
    noisy = pair.seen[-1]
    torch.testing.assert_close(value, (pair.student(noisy) - pair.teacher(noisy)).square().mean())


@pytest.mark.parametrize('positions', [False, True])
def test_gradient_is_that_of_the_teachers_first_class(positions):
    pair = Pair(positions=positions)
    value = pair.loss(mode='gradient')
    gradients = []
    for net in (pair.student, pair.teacher):
        x = pair.x.clone().requires_grad_()
        scores, first = net(x).flatten(2 if positions else 1), pair.teacher(x).flatten(2 if positions else 1)
        if positions:
            scores, first = scores.mean(2), first.mean(2)
        chosen = first.argmax(1)
        (g,) = torch.autograd.grad(sum(scores[i, c] for i, c in enumerate(chosen)), x, retain_graph=True)
        gradients.append(g)
    torch.testing.assert_close(value, unit_gap(*gradients))


@pytest.mark.parametrize('mode', JacobianLoss.MODES)
def test_it_trains_the_student_alone(mode):
    pair = Pair()
    pair.loss(mode=mode).backward()
    assert all(p.grad.abs().max() > 0 for name, p in pair.student.named_parameters() if 'bias' not in name)
    assert all(p.grad is None for p in pair.teacher.parameters())


def test_noise_differs_from_draw_to_draw_and_leaves_the_stream_alone():
    pair, loss = Pair(), JacobianLoss()
    state = torch.get_rng_state()
    for _ in range(2):
        loss(*pair.replay(pair.x), inputs=pair.x, replay=pair.replay)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(pair.seen[-1], pair.seen[-3])


def test_lists_are_averaged():
    pair = Pair()
    single = JacobianLoss()(*pair.replay(pair.x), inputs=pair.x, replay=pair.replay)

    def twice(images):
        return tuple([y, y] for (y,) in pair.replay(images))

    torch.testing.assert_close(JacobianLoss()(*twice(pair.x), inputs=pair.x, replay=twice), single)


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [(dict(mode='exact'), 'difference, noise, gradient'), (dict(sigma=0.0), 'sigma must be above 0')],
)
def test_arguments_are_checked(arguments, says):
    with pytest.raises(ValueError, match=says):
        JacobianLoss(**arguments)


def test_gradient_of_a_list_raises():
    x = [torch.zeros(2, 3)] * 2
    with pytest.raises(ValueError, match="mode='gradient': takes one tap of class scores"):
        JacobianLoss(mode='gradient')(x, x, inputs=torch.zeros(2, 3, 4, 4), replay=lambda images: (x, x))


# ---- unit_gap


def test_unit_gap_by_hand():
    student = torch.tensor([[3.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
    teacher = torch.tensor([[9.0, 0.0], [5.0, 0.0], [-1.0, 0.0]])  # along, across, against
    assert unit_gap(student, teacher).item() == pytest.approx((0 + 2 + 4) / 3)


def test_unit_gap_has_no_scale_and_is_twice_one_minus_the_cosine():
    a, b = torch.randn(4, 3, 5, dtype=DOUBLE), torch.randn(4, 3, 5, dtype=DOUBLE)
    cosine = torch.cosine_similarity(a.flatten(1), b.flatten(1)).mean()
    torch.testing.assert_close(unit_gap(1e3 * a, 1e-3 * b), 2 - 2 * cosine)


def test_unit_gap_gradcheck_and_zero():
    a, b = (torch.randn(2, 3, dtype=DOUBLE, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(unit_gap, (a, b))
    assert torch.autograd.gradgradcheck(unit_gap, (a, b))
    zero = torch.zeros(1, 3, requires_grad=True)
    value = unit_gap(zero, torch.ones(1, 3))
    assert value.item() == pytest.approx(1.0)
    value.backward()
    assert torch.isfinite(zero.grad).all()
