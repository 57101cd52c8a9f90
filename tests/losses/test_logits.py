import copy
import math
import types
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from torch import nn

from lckd_mm.functional import binary_kd_divergence, decoupled_kd, kd_divergence, standardised_scores
from lckd_mm.hosts import build_model, owner_head
from lckd_mm.losses import DKDLoss, KDLoss, WSLDLoss

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def logits(*shape):
    return torch.randn(shape, dtype=DOUBLE), torch.randn(shape, dtype=DOUBLE)


def samples_of(labels):
    from mmseg.structures import SegDataSample

    return [SegDataSample(gt_sem_seg=PixelData(data=label[None])) for label in labels]


def test_classification_equals_torch():
    student, teacher = logits(6, 5)
    expected = F.kl_div(F.log_softmax(student / 3, 1), F.softmax(teacher / 3, 1), reduction='batchmean') * 9
    torch.testing.assert_close(KDLoss(tau=3.0)(student, teacher), expected, rtol=1e-12, atol=0)


def test_value_by_hand():
    # At temperature 4: p_teacher (3/4, 1/4) and (1/2, 1/2), p_student (1/2, 1/2).
    teacher = torch.tensor([[4 * math.log(3.0), 0.0], [1.0, 1.0]], dtype=DOUBLE)
    expected = 16 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    value = KDLoss()(torch.zeros(2, 2, dtype=DOUBLE), teacher)
    assert value.shape == ()
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_map_is_averaged_over_positions():
    student, teacher = logits(2, 5, 3, 4)
    rows = [x.permute(0, 2, 3, 1).flatten(0, 2) for x in (student, teacher)]
    torch.testing.assert_close(KDLoss()(student, teacher), KDLoss()(*rows), rtol=1e-12, atol=0)


def test_sigmoid_form_equals_its_function():
    student, teacher = logits(6, 5)
    expected = binary_kd_divergence(student, teacher, 2.0).mean()
    torch.testing.assert_close(KDLoss(tau=2.0, activation='sigmoid')(student, teacher), expected, rtol=1e-12, atol=0)


def test_ignored_positions_are_left_out_even_with_infinite_logits():
    student, teacher = logits(2, 5, 3, 4)
    labels = torch.zeros(2, 3, 4, dtype=torch.long)
    labels[0, 1, 2] = labels[1, 0, 0] = 255
    valid = labels != 255
    expected = kd_divergence(student, teacher, 4.0)[valid].mean()
    torch.testing.assert_close(KDLoss()(student, teacher, samples_of(labels)), expected, rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(KDLoss()(student.requires_grad_(), teacher, samples_of(labels)), student)
    student = student.detach()
    teacher[0, :, 1, 2] = math.inf
    student[1, 3, 0, 0] = math.inf
    value = KDLoss()(student.requires_grad_(), teacher, samples_of(labels))
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    assert torch.equal(torch.autograd.grad(value, student)[0], gradient)
    assert (gradient.abs().sum(1) > 0).equal(valid)


def test_another_ignore_index():
    student, teacher = logits(1, 5, 2, 2)
    labels = torch.tensor([[[9, 0], [1, 255]]])
    expected = kd_divergence(student, teacher, 4.0)[labels != 9].mean()
    value = KDLoss(ignore_index=9)(student, teacher, samples_of(labels))
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)


def test_labels_are_resized_by_nearest_neighbour():
    student, teacher = logits(1, 5, 2, 2)
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    labels[0, 0, 2] = 255  # the upper left of the block that the second position of the first row stands for
    labels[0, 3, 1] = 255  # not sampled
    expected = kd_divergence(student, teacher, 4.0).flatten()[[0, 2, 3]].mean()
    torch.testing.assert_close(KDLoss()(student, teacher, samples_of(labels)), expected, rtol=1e-12, atol=0)


def test_a_batch_that_is_all_ignored_gives_zero_with_zero_gradient():
    student, teacher = logits(2, 5, 3, 4)
    student.requires_grad_()
    value = KDLoss()(student, teacher, samples_of(torch.full((2, 3, 4), 255)))
    value.backward()
    assert value.item() == 0
    assert torch.equal(student.grad, torch.zeros_like(student))


@pytest.mark.parametrize(('activation', 'divergence'), [('softmax', kd_divergence), ('sigmoid', binary_kd_divergence)])
def test_anchors_equal_a_loop(activation, divergence):
    student, teacher = logits(2, 3 * 4, 2, 5)
    expected = torch.stack(
        [divergence(student[:, a * 4 : a * 4 + 4], teacher[:, a * 4 : a * 4 + 4], 4.0).mean() for a in range(3)]
    ).mean()
    value = KDLoss(activation=activation, num_classes=4)(student, teacher)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize('activation', ['softmax', 'sigmoid'])
def test_levels_are_averaged_over_all_positions_together(activation):
    students, teachers = zip(logits(2, 12, 4, 4), logits(2, 12, 2, 2), logits(2, 12, 1, 1))
    loss = KDLoss(activation=activation, num_classes=4)
    flat = [
        torch.cat([x.unflatten(1, (3, 4)).permute(0, 3, 4, 1, 2).reshape(-1, 4) for x in levels])
        for levels in (students, teachers)
    ]
    assert flat[0].shape == (2 * 21 * 3, 4)
    torch.testing.assert_close(loss(list(students), list(teachers)), loss(*flat), rtol=1e-12, atol=0)


def test_gradient_moves_the_student_toward_the_teacher():
    student, teacher = logits(4, 5)
    for activation in ('softmax', 'sigmoid'):
        loss, z = KDLoss(activation=activation), student.clone().requires_grad_()
        values = []
        for _ in range(20):
            value = loss(z, teacher)
            (gradient,) = torch.autograd.grad(value, z)
            values.append(value.item())
            z = (z - 1.0 * gradient).detach().requires_grad_()
        assert all(later < earlier for earlier, later in pairwise(values))


def test_adapt_reads_a_detection_head(scope, tiny_detector):
    scope('mmdet')
    model = build_model(tiny_detector(classes=3))
    head = owner_head(model, 'bbox_head.retina_cls')
    assert head is model.bbox_head
    loss = KDLoss()
    loss.read_head(head)
    assert (loss.activation, loss.scores) == ('sigmoid', 3)
    student, teacher = logits(1, 6, 2, 2)
    anchors = (z.unflatten(1, (2, 3)).transpose(1, 2) for z in (student, teacher))
    expected = binary_kd_divergence(*anchors, 4.0).mean()
    torch.testing.assert_close(loss(student, teacher), expected, rtol=1e-12, atol=0)


def test_adapt_counts_the_background_of_a_softmax_detection_head(scope, tiny_detector):
    scope('mmdet')
    cfg = copy.deepcopy(tiny_detector(classes=3))
    cfg['bbox_head']['loss_cls'] = dict(type='CrossEntropyLoss', use_sigmoid=False)
    loss = KDLoss()
    loss.read_head(build_model(cfg).bbox_head)
    assert (loss.activation, loss.scores) == ('softmax', 4)


def test_adapt_reads_a_segmentation_head_with_sigmoid_classes(scope, tiny_fcn):
    scope('mmseg')
    cfg = tiny_fcn(classes=4)
    cfg['decode_head']['loss_decode'] = dict(type='CrossEntropyLoss', use_sigmoid=True)
    model = build_model(cfg)
    for path, activation in (('decode_head.conv_seg', 'sigmoid'), ('auxiliary_head.conv_seg', 'softmax')):
        loss = KDLoss()
        loss.read_head(owner_head(model, path))
        assert loss.activation == activation


def test_adapt_leaves_what_was_given_and_falls_back_to_softmax():
    class Head(torch.nn.Module):
        use_sigmoid_cls, cls_out_channels = True, 3

    given, open_ = KDLoss(activation='softmax', num_classes=7), KDLoss()
    given.read_head(Head())
    open_.read_head(None)
    assert (given.activation, given.scores) == ('softmax', 7)
    assert (open_.activation, open_.scores) == ('softmax', None)


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (dict(tau=0), 'tau must be above 0, got 0'),
        (dict(tau=-1.0), 'tau must be above 0, got -1.0'),
        (dict(tau=math.nan), 'tau must be a finite number, got nan'),
        (dict(activation='relu'), "unknown activation 'relu', expected one of softmax, sigmoid"),
    ],
)
def test_bad_arguments_raise(arguments, says):
    with pytest.raises(ValueError, match=says):
        KDLoss(**arguments)


@pytest.mark.parametrize(
    ('student', 'teacher', 'says'),
    [
        ((2, 3), (2, 4), 'differ in shape'),
        ((2, 3, 4, 4), (2, 3, 2, 2), 'differ in shape'),
        ((2, 10, 4, 4), (2, 10, 4, 4), 'num_classes=3'),
    ],
)
def test_bad_shapes_raise(student, teacher, says):
    with pytest.raises(ValueError, match=says):
        KDLoss(num_classes=3)(torch.zeros(student), torch.zeros(teacher))


def test_levels_that_differ_in_number_raise():
    with pytest.raises(ValueError, match='2 student tensors, but 1'):
        KDLoss()([torch.zeros(1, 2)] * 2, [torch.zeros(1, 2)])


# ---- DKDLoss


def labelled(labels):
    from mmpretrain.structures import DataSample

    return [DataSample().set_gt_label(y) for y in labels]


def test_dkd_equals_its_two_parts():
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 5).double(), torch.randn(4, 5).double()
    of_target, among = decoupled_kd(student, teacher, torch.tensor([0, 4, 2, 2]), 4.0)
    loss = DKDLoss(tau=4.0, alpha=0.5, beta=3.0)(student, teacher, labelled([0, 4, 2, 2]))
    torch.testing.assert_close(loss, (0.5 * of_target + 3 * among).mean())


def test_dkd_leaves_ignored_pixels_out():
    torch.manual_seed(0)
    student, teacher = torch.randn(1, 3, 2, 2).double(), torch.randn(1, 3, 2, 2).double()
    labels = torch.tensor([[[0, 255], [2, 1]]])
    teacher[0, 0, 0, 1] = torch.inf
    student.requires_grad_()
    loss = DKDLoss()(student, teacher, samples_of(labels))
    loss.backward()
    kept = [(0, 0, 0), (1, 0, 2), (1, 1, 1)]
    parts = [decoupled_kd(student[:, :, i, j], teacher[:, :, i, j], torch.tensor([y]), 4.0) for i, j, y in kept]
    torch.testing.assert_close(loss, sum(t + 8 * n for t, n in parts)[0] / 3)
    assert torch.isfinite(student.grad).all()
    assert not student.grad[0, :, 0, 1].any()


@pytest.mark.parametrize('samples', [None, [], 'soft', 'mixed'])
def test_dkd_without_one_label_a_sample_raises(samples):
    if samples in ('soft', 'mixed'):
        from mmpretrain.structures import DataSample

        kind, samples = samples, [DataSample().set_gt_score(torch.tensor([0.6, 0.4])) for _ in range(2)]
        if kind == 'mixed':  # what Mixup leaves of a sample
            samples = [sample.set_gt_label(0) for sample in samples]
    with pytest.raises(ValueError, match='needs one label per sample'):
        DKDLoss()(torch.zeros(2, 2), torch.zeros(2, 2), samples)


class Sigmoids(nn.Module):
    use_sigmoid = True


@pytest.mark.parametrize(
    ('attributes', 'says'),
    [
        (dict(loss_decode=types.SimpleNamespace(use_sigmoid=True)), 'has a sigmoid per class'),
        (dict(loss_module=types.SimpleNamespace(use_sigmoid=True)), 'has a sigmoid per class'),
        (dict(loss_decode=nn.ModuleList([nn.Identity(), Sigmoids()])), 'has a sigmoid per class'),
        (dict(use_sigmoid_cls=False, cls_out_channels=4), 'the positions of the detection head'),
    ],
)
def test_dkd_refuses_heads_without_a_target_class(attributes, says):
    with pytest.raises(ValueError, match=says):
        DKDLoss().read_head(types.SimpleNamespace(**attributes))


@pytest.mark.parametrize(
    ('arguments', 'says'), [(dict(tau=0), 'tau must be above 0'), (dict(beta=-1), 'beta must be at least 0')]
)
def test_dkd_arguments_are_checked(arguments, says):
    with pytest.raises(ValueError, match=says):
        DKDLoss(**arguments)


# ---- standardise


def test_z_scores_by_hand():
    # mean 3, unbiased variance (4 + 1 + 0 + 9) / 3
    z = torch.tensor([[1.0, 2.0, 3.0, 6.0]], dtype=DOUBLE)
    expected = torch.tensor([[-2.0, -1.0, 0.0, 3.0]], dtype=DOUBLE) / (math.sqrt(14 / 3) + 1e-7)
    torch.testing.assert_close(standardised_scores(z), expected, rtol=1e-12, atol=0)
    on_maps = standardised_scores(z[..., None, None].expand(1, 4, 2, 3))
    torch.testing.assert_close(on_maps, expected[..., None, None].expand(1, 4, 2, 3), rtol=1e-12, atol=0)


def test_equal_scores_have_the_z_score_0_without_gradient():
    z = torch.zeros(2, 4, requires_grad=True)
    standardised_scores(z).square().sum().backward()
    assert not z.grad.any()
    assert torch.autograd.gradcheck(standardised_scores, torch.randn(2, 4, dtype=DOUBLE, requires_grad=True))


def test_standardised_kd_is_kd_of_the_z_scores_and_knows_no_shift_and_scale():
    student, teacher = logits(6, 5)
    expected = KDLoss(tau=2.0)(*map(standardised_scores, (student, teacher)))
    loss = KDLoss(tau=2.0, standardise=True)
    torch.testing.assert_close(loss(student, teacher), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(loss(9 * student + 4, 0.1 * teacher - 1), expected, rtol=1e-5, atol=0)
    assert loss(3 * teacher - 2, teacher).item() == pytest.approx(0, abs=1e-9)


def test_standardised_kd_of_anchors_takes_the_classes_of_each_anchor():
    student, teacher = logits(2, 6, 3, 3)
    rows = [z.unflatten(1, (2, 3)).permute(0, 1, 3, 4, 2).reshape(-1, 3) for z in (student, teacher)]
    loss = KDLoss(num_classes=3, standardise=True)
    torch.testing.assert_close(loss(student, teacher), KDLoss(standardise=True)(*rows), rtol=1e-12, atol=0)


def test_standardised_kd_leaves_ignored_positions_out():
    student, teacher = logits(1, 5, 2, 2)
    labels = torch.tensor([[[255, 0], [1, 0]]])
    rows = [z.flatten(2)[0].T[1:] for z in (student, teacher)]
    teacher[0, :, 0, 0] = math.inf
    student.requires_grad_()
    loss = KDLoss(standardise=True)(student, teacher, samples_of(labels))
    loss.backward()
    torch.testing.assert_close(loss, KDLoss(standardise=True)(*rows), rtol=1e-12, atol=0)
    assert torch.isfinite(student.grad).all() and not student.grad[0, :, 0, 0].any()


def test_standardise_is_refused_for_sigmoids():
    with pytest.raises(ValueError, match=r'KDLoss: standardise=True .* own sigmoid; leave out standardise'):
        KDLoss(activation='sigmoid', standardise=True)
    with pytest.raises(ValueError, match=r'KDLoss: standardise=True .* own sigmoid; leave out standardise'):
        KDLoss(standardise=True).read_head(types.SimpleNamespace(loss_decode=types.SimpleNamespace(use_sigmoid=True)))
    KDLoss(standardise=True).read_head(types.SimpleNamespace(use_sigmoid_cls=False, cls_out_channels=4))


def test_standardised_dkd_is_dkd_of_the_z_scores():
    student, teacher = logits(4, 5)
    samples = labelled([0, 4, 2, 2])
    expected = DKDLoss()(*map(standardised_scores, (student, teacher)), samples)
    torch.testing.assert_close(DKDLoss(standardise=True)(student, teacher, samples), expected, rtol=1e-12, atol=0)


# ---- WSLDLoss


def test_wsld_by_hand():
    # The student gives the label 1/2, the teacher 1/4: the weight is 1 - exp(-1/2).
    student = torch.zeros(1, 2, dtype=DOUBLE)
    teacher = torch.tensor([[0.0, math.log(3.0)]], dtype=DOUBLE)
    odds = 1 / (1 + math.sqrt(3))  # the teacher's probability at temperature 2
    divergence = odds * math.log(2 * odds) + (1 - odds) * math.log(2 * (1 - odds))
    expected = (1 - math.exp(-0.5)) * 4 * divergence
    assert WSLDLoss()(student, teacher, labelled([0])).item() == pytest.approx(expected, rel=1e-6)


def test_wsld_has_the_gradient_of_the_weighted_cross_entropy():
    student, teacher = logits(5, 4)
    student.requires_grad_()
    target = torch.tensor([0, 3, 2, 2, 1])
    ours, theirs = (F.nll_loss(z.detach().log_softmax(1), target, reduction='none') for z in (student, teacher))
    soft = -((teacher / 3).softmax(1) * (student / 3).log_softmax(1)).sum(1)
    expected = 9 * ((1 - torch.exp(-ours / (theirs + 1e-7))) * soft).mean()
    loss = WSLDLoss(tau=3.0)(student, teacher, labelled(target.tolist()))
    gradients = (torch.autograd.grad(value, student)[0] for value in (loss, expected))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-14)


def test_wsld_leaves_ignored_pixels_out():
    student, teacher = logits(1, 3, 2, 2)
    labels = torch.tensor([[[0, 255], [2, 1]]])
    rows = [z.flatten(2)[0].T[[0, 2, 3]] for z in (student, teacher)]
    expected = WSLDLoss()(*rows, labelled([0, 2, 1]))
    teacher[0, 0, 0, 1] = torch.inf
    torch.testing.assert_close(WSLDLoss()(student, teacher, samples_of(labels)), expected, rtol=1e-12, atol=0)


def test_wsld_needs_a_label_and_a_softmax():
    with pytest.raises(ValueError, match='WSLDLoss: needs one label per sample'):
        WSLDLoss()(torch.zeros(2, 2), torch.zeros(2, 2), None)
    with pytest.raises(ValueError, match=r'WSLDLoss: .* has a sigmoid per class'):
        WSLDLoss().read_head(types.SimpleNamespace(loss_module=types.SimpleNamespace(use_sigmoid=True)))
    with pytest.raises(ValueError, match='tau must be above 0'):
        WSLDLoss(tau=0)
