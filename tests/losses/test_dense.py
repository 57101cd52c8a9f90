import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lckd_mm.functional import focal_cross_entropy, giou, kd_divergence
from lckd_mm.hosts import build_model, decoded_boxes
from lckd_mm.losses import BCKDBoxLoss, BCKDLoss, LDLoss, ScoreWeightedLoss

STRIDES = [8, 16]
SIZES = [(4, 5), (2, 3)]
ONE = dict(type='AnchorGenerator', octave_base_scale=8, scales_per_octave=1, ratios=[1.0], strides=STRIDES)
TWO = dict(ONE, ratios=[0.5, 2.0])
COMMON = dict(num_classes=3, in_channels=8, feat_channels=8, stacked_convs=1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Scores(nn.Module):
    """What the losses read of a dense head."""

    def __init__(self, channels, sigmoids=True):
        super().__init__()
        self.cls_out_channels, self.use_sigmoid_cls = channels, sigmoids


def gfl(**changes):
    return build_model(dict(COMMON, type='GFLHead', anchor_generator=ONE, norm_cfg=dict(type='BN'), reg_max=4,
                            **changes), 'mmdet').double()  # fmt: skip


def retina(**changes):
    return build_model({**COMMON, 'type': 'RetinaHead', 'anchor_generator': TWO, **changes}, 'mmdet').double()


def normal(*channels, scale=1.0):
    return [scale * torch.randn(2, c, *size, dtype=torch.float64) for c, size in zip(channels, SIZES)]


def bound(loss, student, teacher=None):
    teacher = student if teacher is None else teacher
    loss.read_head(student)
    loss.read_teacher_head(teacher)
    return loss


# ---- formulas


def test_giou_is_that_of_mmdet_and_is_known_for_some_boxes():
    from mmdet.structures.bbox import bbox_overlaps

    corners, sides = 50 * torch.rand(2, 40, 2, dtype=torch.float64), 30 * torch.rand(2, 40, 2, dtype=torch.float64)
    a, b = torch.cat([corners, corners + sides], 2)
    torch.testing.assert_close(giou(a, b), bbox_overlaps(a, b, mode='giou', is_aligned=True))
    one = torch.tensor([0.0, 0.0, 2.0, 2.0])
    assert giou(one, one) == 1
    # A quarter each of two squares that overlap by 1: union 7, hull 9.
    assert giou(one, one + 1) == pytest.approx(1 / 7 - 2 / 9)
    # Apart by one side: union 2, hull 3.
    unit = torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert giou(unit, unit + torch.tensor([2.0, 0.0, 2.0, 0.0])) == pytest.approx(-1 / 3)
    assert giou(one[None] * 7, one[None] * 7 + 7) == pytest.approx(1 / 7 - 2 / 9)
    point = torch.zeros(4, requires_grad=True)
    giou(point, one).backward()
    assert point.grad.isfinite().all()


def test_giou_has_the_gradient_of_its_value():
    a = torch.tensor([[0.0, 0.0, 2.0, 3.0], [5.0, 5.0, 9.0, 8.0]], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([[1.0, 0.5, 4.0, 2.0], [1.0, 1.0, 2.0, 3.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: giou(x, b), a)


def test_focal_cross_entropy_by_hand():
    z = torch.zeros(1, 2, dtype=torch.float64)
    # p_s = 1/2; p_t = 3/4 and 1/2: the second class agrees and counts nothing.
    teacher = torch.tensor([[3.0, 1.0]], dtype=torch.float64).log()
    expected = torch.tensor(2.0, dtype=torch.float64).log() / 4
    torch.testing.assert_close(focal_cross_entropy(z, teacher), expected[None])
    torch.testing.assert_close(focal_cross_entropy(z, teacher, 2.0), expected[None] / 4)
    s, t = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: focal_cross_entropy(x, t, 1.5), s.requires_grad_())
    with pytest.raises(ValueError, match='differ in shape'):
        focal_cross_entropy(s, t[:, :2])


# ---- features weighted by scores


def test_score_weighted_by_hand():
    """Two positions of confidence 1/2 and 1/4; the first one differs by 2 in one of two channels."""
    student, teacher = torch.zeros(2, 1, 2, 1, 2, dtype=torch.float64)
    student[0, 0, 0, 0] = 2.0
    scores = torch.tensor([1.0, 1 / 3], dtype=torch.float64).log().view(1, 1, 1, 2)
    scores = torch.cat([scores - 5, scores], 1)
    loss = ScoreWeightedLoss()
    assert loss(student, teacher, scores=scores).item() == pytest.approx(0.5 * 4 / (2 * 0.75))
    # Levels are added up, each with a sum of weights of its own.
    both = loss([student, student], [teacher, teacher], scores=[scores, scores - 10])
    assert both.item() == pytest.approx(0.5 * 4 / 1.5 + 4 / 2 / (1 + (1 / 3)), rel=1e-3)
    assert loss(teacher, teacher, scores=scores) == 0
    assert loss(student[:0], teacher[:0], scores=scores[:0]) == 0


@pytest.mark.parametrize('anchors', [1, 3])
def test_confidence_is_that_of_the_surest_class_of_an_anchor(anchors):
    z = torch.randn(2, anchors * 4, 3, 2, dtype=torch.float64)
    loss = ScoreWeightedLoss()
    loss.read_teacher_head(Scores(4))
    found = loss.confidence(z)
    loss.read_teacher_head(Scores(4, sigmoids=False))
    softmax = loss.confidence(z)
    assert found.shape == softmax.shape == (2, anchors, 3, 2)
    for a in range(anchors):
        own = z[:, 4 * a : 4 * a + 4]
        torch.testing.assert_close(found[:, a], own.sigmoid().amax(1))
        torch.testing.assert_close(softmax[:, a], 1 - own.softmax(1)[:, 3])


def test_score_weighted_takes_the_surest_anchor_and_has_no_gradient_to_scores():
    s, t = normal(6, 5), normal(6, 5)
    z = [x.requires_grad_() for x in normal(8, 8)]
    loss = ScoreWeightedLoss()
    loss.read_teacher_head(Scores(4))
    expected = 0.0
    for a, b, c in zip(s, t, z):
        w = c.detach().sigmoid().amax(1, keepdim=True)
        expected = expected + (w * (a - b) ** 2).mean(1).sum() / w.sum()
    value = loss([x.requires_grad_() for x in s], t, scores=z)
    torch.testing.assert_close(value, expected)
    value.backward()
    assert all(x.grad is None for x in z) and all(x.grad.abs().sum() > 0 for x in s)
    with pytest.raises(ValueError, match=r'features \(2, 6, 4, 5\) and scores \(2, 8, 2, 3\) of other positions'):
        loss(s[:1], t[:1], scores=z[1:])
    with pytest.raises(ValueError, match=r'ScoreWeightedLoss: student .*ConvBN'):
        loss(s[:1], [t[0][:, :3]], scores=z[:1])
    with pytest.raises(ValueError, match='8 channels are not a multiple'):
        loss.read_teacher_head(Scores(3))
        loss(s[:1], t[:1], scores=z[:1])


@pytest.mark.parametrize('head', [None, nn.Linear(1, 1)])
@pytest.mark.parametrize('kind', [ScoreWeightedLoss, BCKDLoss])
def test_scores_of_no_dense_head_are_refused(kind, head):
    with pytest.raises(ValueError, match=f'{kind.__name__}: needs the class scores of one of the dense heads of mmdet'):
        kind().read_teacher_head(head)


# ---- class scores


def test_bckd_is_the_sum_over_all_anchors_by_the_teacher_s_confidences():
    s, t = normal(6, 6), normal(6, 6)
    loss = bound(BCKDLoss(beta=2.0), Scores(3))
    total = sum(
        (F.binary_cross_entropy(a.sigmoid(), b.sigmoid(), reduction='none') * (a.sigmoid() - b.sigmoid()) ** 2).sum()
        for a, b in zip(s, t)
    )
    sure = sum(b[:, :3].sigmoid().amax(1).sum() + b[:, 3:].sigmoid().amax(1).sum() for b in t)
    torch.testing.assert_close(loss(s, t), total / sure)
    assert loss(t, t) == 0
    assert loss([x[:0] for x in s], [x[:0] for x in t]) == 0
    # One anchor of six classes is sure of fewer things.
    loss.keep_classes(list(range(6)), list(range(6)), 6)
    assert loss(s, t) > total / sure


def test_bckd_has_the_gradient_of_its_value_and_none_to_the_teacher():
    s, t = normal(3), normal(3)
    loss = bound(BCKDLoss(), Scores(3))
    assert torch.autograd.gradcheck(lambda x: loss(x, t[0]), s[0].requires_grad_())
    with pytest.raises(ValueError, match='BCKDLoss: beta must be at least 1'):
        BCKDLoss(beta=0.5)
    with pytest.raises(ValueError, match=r'BCKDLoss: Scores scores classes by a softmax.*KDLoss'):
        BCKDLoss().read_head(Scores(3, sigmoids=False))


# ---- boxes


def test_ld_is_a_mean_of_divergences_weighted_by_the_teacher():
    loss = bound(LDLoss(tau=3.0), gfl())
    s, t, z = normal(20, 20), normal(20, 20), normal(3, 3)
    total, sure = 0.0, 0.0
    for a, b, c in zip(s, t, z):
        w = c.sigmoid().amax(1)
        for edge in range(4):
            kl = kd_divergence(a[:, 5 * edge : 5 * edge + 5], b[:, 5 * edge : 5 * edge + 5], 3.0)
            total = total + (kl * w).sum() / 4
        sure = sure + w.sum()
    torch.testing.assert_close(loss(s, t, scores=z), total / sure)
    assert loss(t, t, scores=z).abs() < 1e-12
    assert loss(*([x[:0] for x in of] for of in (s, t)), scores=[x[:0] for x in z]) == 0
    flat = [a.detach().requires_grad_() for a in s]
    loss(flat, t, scores=z).backward()
    assert all(x.grad.abs().sum() > 0 for x in flat)
    for few, n in ((z[:1], 20), (z[::-1][:1], 6)):
        with pytest.raises(ValueError, match=f'LDLoss: 26 boxes and {n} anchors with class scores; tap'):
            loss(s, t, scores=few)


def test_ld_refuses_heads_without_distributions_and_other_distances():
    with pytest.raises(ValueError, match=r'LDLoss: RetinaHead predicts no distributions .*BCKDBoxLoss'):
        LDLoss().read_head(retina())
    with pytest.raises(ValueError, match=r"student's distributions have reg_max=4, the teacher's 6; .*BCKDBoxLoss"):
        other = gfl()
        other.reg_max = 6
        bound(LDLoss(), gfl(), other)
    with pytest.raises(ValueError, match='LDLoss: compares the boxes of a dense head, and the tap lies in no head'):
        LDLoss().read_head(None)
    with pytest.raises(ValueError, match='tau must be above 0'):
        LDLoss(tau=0)


@pytest.mark.parametrize('weigh', ['difference', 'confidence'])
@pytest.mark.parametrize('make', [gfl, retina])
def test_box_loss_is_the_weighted_mean_of_one_minus_giou(make, weigh):
    head, anchors = make(), 2 if make is retina else 1
    loss = bound(BCKDBoxLoss(weigh=weigh), head)
    widths = [anchors * (4 if make is retina else 20)] * 2
    s, t = normal(*widths, scale=0.5), normal(*widths, scale=0.5)
    z, own = (normal(*[3 * anchors] * 2) for _ in range(2))

    def rows(maps, columns):
        return torch.cat([x.permute(0, 2, 3, 1).reshape(2, -1, columns) for x in maps], 1)

    p, q = rows(z, 3).sigmoid(), rows(own, 3).sigmoid()
    w = p.amax(2) if weigh == 'confidence' else (p - q).abs().amax(2)
    distance = 1 - giou(decoded_boxes(head, s), decoded_boxes(head, t))
    expected = (w * distance).sum() / p.amax(2).sum()
    leaves = [x.requires_grad_() for x in (*s, *own)]
    value = loss(s, t, scores=z, student_scores=own)
    torch.testing.assert_close(value, expected)
    value.backward()
    assert all(x.grad.abs().sum() > 0 for x in s) and all(x.grad is None for x in leaves[2:])
    assert loss(t, t, scores=z, student_scores=own).abs() < 1e-12
    empty = [[x[:0] for x in of] for of in (s, t, z, own)]
    assert loss(empty[0], empty[1], scores=empty[2], student_scores=empty[3]) == 0


def test_box_loss_refuses_what_does_not_fit():
    loss = bound(BCKDBoxLoss(), retina())
    s, z = normal(8, 8), normal(6, 6)
    with pytest.raises(ValueError, match=r'class scores: student \(2, 3, 4, 5\) .* weigh='):
        loss(s, s, scores=z, student_scores=[x[:, :3] for x in z])
    with pytest.raises(ValueError, match='52 boxes and 26 anchors with class scores'):
        one = [x[:, :3] for x in z]
        loss(s, s, scores=one, student_scores=one)
    with pytest.raises(ValueError, match='BCKDBoxLoss: box i of the student belongs to another anchor'):
        bound(BCKDBoxLoss(), retina(), retina(anchor_generator=dict(TWO, ratios=[1.0, 2.0])))
    with pytest.raises(ValueError, match="unknown weigh 'sum'"):
        BCKDBoxLoss(weigh='sum')


def test_the_heads_of_a_box_loss_are_no_part_of_it_and_shared_by_its_copies():
    head = gfl()
    loss = bound(LDLoss(), head)
    assert not list(loss.parameters()) and not loss.state_dict() and len(list(loss.modules())) == 1
    assert copy.deepcopy(loss)._heads.student is head
    loss.bind(list(head.scales), 'term')
    says = r"term: LDLoss: teacher's taps: the boxes of a GFLHead .* tap all of scales.0 to scales.1"
    for layers in ([head.gfl_reg], [None, None]):
        with pytest.raises(ValueError, match=says):
            loss.bind(layers, 'term')


# ---- classes, and a teacher that sees nothing


def test_bckd_reads_the_anchors_of_the_classes_that_are_kept():
    """The student has 10 of the teacher's 20 classes; the teacher's head is read again after they are matched."""
    loss = bound(BCKDLoss(), Scores(10), Scores(20))
    loss.keep_classes(list(range(10)), list(range(10)), 10)
    loss.read_teacher_head(Scores(20))
    s, t = normal(20, 20), normal(20, 20)
    total = sum(focal_cross_entropy(a, b, 1.0).sum() for a, b in zip(s, t))
    sure = sum(b.sigmoid().unflatten(1, (2, 10)).amax(2).sum() for b in t)
    torch.testing.assert_close(loss(s, t), total / sure)


def test_a_teacher_that_sees_nothing_does_not_blow_the_loss_up():
    s, t = normal(3, 3), [x - 30 for x in normal(3, 3)]
    loss = bound(BCKDLoss(), Scores(3))
    expected = sum(focal_cross_entropy(a, b, 1.0).sum() for a, b in zip(s, t))
    torch.testing.assert_close(loss(s, t), expected)
    head = gfl()
    boxes = normal(20, 20)
    value = bound(BCKDBoxLoss(), head)(boxes, normal(20, 20), scores=t, student_scores=s)
    assert value < 2 * sum(x[:, 0].numel() for x in boxes)


def test_classes_cannot_be_matched_where_boxes_are_compared():
    assert BCKDBoxLoss().of_classes and not BCKDBoxLoss('confidence').of_classes
    with pytest.raises(ValueError, match=r'BCKDBoxLoss: compares boxes, and classes= is for class scores; remove it'):
        bound(BCKDBoxLoss(), gfl()).keep_classes([0], [0], 3)
