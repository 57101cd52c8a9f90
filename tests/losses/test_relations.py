import math

import pytest
import torch
import torch.nn.functional as F

from lckd_mm.losses import RKDLoss
from lckd_mm.losses.relations import pairwise_angles, pairwise_distances

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_it_equals_its_two_parts():
    student, teacher = torch.randn(5, 3).double(), torch.randn(5, 4, 2, 2).double()
    distance = F.smooth_l1_loss(pairwise_distances(student), pairwise_distances(teacher))
    angle = F.smooth_l1_loss(pairwise_angles(student), pairwise_angles(teacher))
    torch.testing.assert_close(RKDLoss()(student, teacher), 25 * distance + 50 * angle)
    torch.testing.assert_close(RKDLoss(2, 0)(student, teacher), 2 * distance)
    torch.testing.assert_close(RKDLoss(0, 3)(student, teacher), 3 * angle)


def test_turning_and_scaling_the_features_changes_nothing():
    student, teacher = torch.randn(6, 8).double(), torch.randn(6, 5).double()
    turned = 3 * student @ torch.linalg.qr(torch.randn(8, 8).double()).Q + 1
    torch.testing.assert_close(RKDLoss()(turned, teacher), RKDLoss()(student, teacher))


def test_a_single_sample_has_no_relations():
    student = torch.randn(1, 4, requires_grad=True)
    loss = RKDLoss()(student, torch.randn(1, 4))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(student.grad, torch.zeros(1, 4))


@pytest.mark.parametrize(
    ('weights', 'says'),
    [((-1, 1), 'distance_weight must be at least 0, got -1'), ((0, 0), 'one of distance_weight and angle_weight must')],
)
def test_weights_that_make_no_sense_raise(weights, says):
    with pytest.raises(ValueError, match=says):
        RKDLoss(*weights)


# ---- distances, angles


def test_distances_by_hand():
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 8.0]], dtype=DOUBLE)
    # 5, 8 and 5, each twice; their mean is 6.
    expected = torch.tensor([[0, 5, 8], [5, 0, 5], [8, 5, 0]], dtype=DOUBLE) / 6
    torch.testing.assert_close(pairwise_distances(x), expected)


def test_distances_have_mean_one_and_no_scale():
    x = torch.randn(6, 3, 4, dtype=DOUBLE)
    d = pairwise_distances(x)
    assert d.sum().item() / 30 == pytest.approx(1)
    torch.testing.assert_close(pairwise_distances(5 * x + 0), d)
    torch.testing.assert_close(
        d, torch.cdist(x.flatten(1), x.flatten(1)) / torch.cdist(x.flatten(1), x.flatten(1)).sum() * 30
    )


def test_samples_that_coincide_have_no_distance_and_no_gradient():
    x = torch.rand(1, 640).repeat(3, 1).requires_grad_()
    d = pairwise_distances(x)
    d.sum().backward()
    assert torch.equal(d, torch.zeros(3, 3))
    assert torch.equal(x.grad, torch.zeros(3, 640))


def test_close_samples_far_from_the_origin_keep_their_distances():
    x = torch.rand(16, 640) * 0.01 + 1
    reference = torch.cdist(x.double(), x.double())
    torch.testing.assert_close(pairwise_distances(x).double(), reference / reference.sum() * 240, rtol=1e-3, atol=1e-6)


def test_distances_gradcheck():
    assert torch.autograd.gradcheck(pairwise_distances, torch.randn(4, 3, dtype=DOUBLE, requires_grad=True))


def test_angles_by_hand():
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]], dtype=DOUBLE)
    angles = pairwise_angles(x)
    assert angles[0, 1, 2].item() == pytest.approx(0)  # a right angle at the first
    assert angles[1, 0, 2].item() == pytest.approx(1 / math.sqrt(5))
    assert angles[2, 0, 1].item() == pytest.approx(2 / math.sqrt(5))
    assert angles[0, 1, 1].item() == pytest.approx(1)
    assert angles[0, 0, 1].item() == 0


def test_angles_are_those_of_triangles():
    # The three angles of any triangle add up to half a turn.
    angles = pairwise_angles(torch.randn(3, 5, dtype=DOUBLE)).clamp(-1, 1).arccos()
    assert (angles[0, 1, 2] + angles[1, 0, 2] + angles[2, 0, 1]).item() == pytest.approx(math.pi)


def test_angles_gradcheck():
    assert torch.autograd.gradcheck(pairwise_angles, torch.randn(3, 2, dtype=DOUBLE, requires_grad=True))


def test_angles_at_samples_that_coincide_have_no_gradient():
    x = torch.randn(8, 64)
    x[1] = x[0]
    x.requires_grad_()
    (pairwise_angles(x) - pairwise_angles(torch.randn(8, 64))).square().sum().backward()
    assert x.grad.abs().max() < 100
