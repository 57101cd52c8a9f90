import math

import pytest
import torch
import torch.nn.functional as F
from mmengine.structures import PixelData

from lckd_mm.hosts import build_model
from lckd_mm.losses import DISTLoss, KDLoss, RKDLoss, SPLoss
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


# ---- SPLoss


def test_similarities_by_hand():
    # G is [[25, 0], [0, 4]] and [[1, 1], [1, 1]]; with rows of length 1: the unit matrix, and 1 / sqrt(2) everywhere.
    student, teacher = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]], dtype=DOUBLE), torch.ones(2, 1, dtype=DOUBLE)
    half = 1 / math.sqrt(2)
    expected = (2 * (1 - half) ** 2 + 2 * half**2) / 4
    assert SPLoss()(student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_similarities_have_no_rotation_and_no_scale_and_layers_are_averaged():
    student, teacher = torch.randn(5, 3, 4, 4).double(), torch.randn(5, 7).double()
    turned = 3 * student.flatten(1) @ torch.linalg.qr(torch.randn(48, 48).double()).Q
    loss = SPLoss()(student, teacher)
    torch.testing.assert_close(SPLoss()(turned, teacher), loss)
    torch.testing.assert_close(SPLoss()([student, teacher], [teacher, teacher]), loss / 2)


def test_similarities_of_one_sample_or_none_are_0():
    for batch in (0, 1):
        student = torch.randn(batch, 4, requires_grad=True)
        loss = SPLoss()(student, torch.randn(batch, 3))
        loss.backward()
        assert loss.item() == 0 and not student.grad.any()
    with pytest.raises(ValueError, match=r'SPLoss: similarities of: .* both nets must see the same batch'):
        SPLoss()(torch.zeros(2, 3), torch.zeros(3, 3))


def test_similarities_gradcheck():
    teacher = torch.randn(3, 2, dtype=DOUBLE)
    assert torch.autograd.gradcheck(lambda x: SPLoss()(x, teacher), torch.randn(3, 4, dtype=DOUBLE, requires_grad=True))


# ---- DISTLoss


def correlation_loss(student, teacher, beta, gamma, tau):
    ours, theirs = ((z / tau).softmax(1) for z in (student, teacher))
    n, classes = ours.shape
    among = torch.stack([torch.corrcoef(torch.stack([ours[i], theirs[i]]))[0, 1] for i in range(n)])
    within = torch.stack([torch.corrcoef(torch.stack([ours[:, c], theirs[:, c]]))[0, 1] for c in range(classes)])
    return tau**2 * (beta * (1 - among.mean()) + gamma * (1 - within.mean()))


@pytest.mark.parametrize('weights', [(1.0, 1.0, 1.0), (2.0, 0.0, 4.0), (0.0, 3.0, 0.5)])
def test_dist_is_torchs_correlation_coefficient(weights):
    student, teacher = torch.randn(6, 4).double(), torch.randn(6, 4).double()
    loss = DISTLoss(*weights)(student, teacher)
    torch.testing.assert_close(loss, correlation_loss(student, teacher, *weights), rtol=1e-5, atol=0)


def test_dist_of_maps_and_tokens_is_that_of_their_positions():
    student, teacher = torch.randn(2, 5, 3, 4).double(), torch.randn(2, 5, 3, 4).double()
    rows = [x.permute(0, 2, 3, 1).reshape(-1, 5) for x in (student, teacher)]
    tokens = [x.flatten(2).mT for x in (student, teacher)]
    for shaped in ((student, teacher), tokens):
        torch.testing.assert_close(DISTLoss()(*shaped), DISTLoss()(*rows), rtol=1e-12, atol=0)


def segmented(labels):
    from mmseg.structures import SegDataSample

    return [SegDataSample(gt_sem_seg=PixelData(data=label[None])) for label in labels]


def test_dist_leaves_ignored_pixels_out_of_both_parts():
    student, teacher = torch.randn(2, 5, 3, 4).double(), torch.randn(2, 5, 3, 4).double()
    labels = torch.zeros(2, 3, 4, dtype=torch.long)
    labels[0, 1] = labels[1, 0, 0] = 9
    rows = [x.permute(0, 2, 3, 1)[labels != 9] for x in (student, teacher)]
    expected = DISTLoss()(*rows)
    teacher[0, :, 1, 2] = torch.inf
    student.requires_grad_()
    loss = DISTLoss(ignore_index=9)(student, teacher, segmented(labels))
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    assert (student.grad.abs().sum(1) > 0).equal(labels != 9)


def test_dist_of_nothing_but_ignored_pixels_is_0():
    student = torch.randn(1, 5, 2, 2, requires_grad=True)
    loss = DISTLoss()(student, torch.randn(1, 5, 2, 2), segmented(torch.full((1, 2, 2), 255)))
    loss.backward()
    assert loss.item() == 0 and not student.grad.any()


def test_dist_is_least_where_the_probabilities_agree_up_to_shift_and_scale():
    teacher = torch.randn(6, 4).double()
    p = teacher.softmax(1)
    assert DISTLoss()(teacher, teacher).item() == pytest.approx(0, abs=1e-6)
    assert DISTLoss()((0.3 * p + 0.7 / 4).log(), teacher).item() == pytest.approx(0, abs=1e-6)
    assert KDLoss()((0.3 * p + 0.7 / 4).log(), teacher) > 0.1


def test_dist_has_a_gradient_for_the_student_alone():
    teacher = torch.randn(4, 3, dtype=DOUBLE)
    student = torch.randn(4, 3, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: DISTLoss(tau=2.0)(z, teacher), student)
    assert torch.isfinite(torch.autograd.grad(DISTLoss()(student[:1], teacher[:1]), student)[0]).all()


def test_dist_refuses_heads_without_one_softmax(scope, tiny_detector):
    scope('mmdet')
    with pytest.raises(ValueError, match=r'DISTLoss: .*RetinaHead has a sigmoid per class; use KDLoss'):
        DISTLoss().read_head(build_model(tiny_detector(classes=3)).bbox_head)
    softmax = tiny_detector(classes=3)
    softmax['bbox_head']['loss_cls'] = dict(type='CrossEntropyLoss', use_sigmoid=False)
    with pytest.raises(ValueError, match=r'DISTLoss: .*the detection head RetinaHead may score several anchors'):
        DISTLoss().read_head(build_model(softmax).bbox_head)
    DISTLoss().read_head(None)


@pytest.mark.parametrize(
    ('weights', 'says'),
    [
        (dict(beta=-1), 'beta must be at least 0'),
        (dict(beta=0, gamma=0), 'one of beta and gamma must be above 0'),
        (dict(tau=0), 'tau must be above 0'),
    ],
)
def test_dist_arguments_are_checked(weights, says):
    with pytest.raises(ValueError, match=says):
        DISTLoss(**weights)
    with pytest.raises(ValueError, match='differ in shape; both nets must score the same classes'):
        DISTLoss()(torch.zeros(2, 3), torch.zeros(2, 4))
