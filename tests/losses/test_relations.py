import pytest
import torch
import torch.nn.functional as F

from lckd_mm.functional import pairwise_angles, pairwise_distances
from lckd_mm.losses import RKDLoss


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
