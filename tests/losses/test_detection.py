import math

import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.structures import InstanceData

from lckd_mm.losses import FGDLoss
from lckd_mm.losses.detection import GlobalContext, absolute_attention, box_masks, focal_distances


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def sample(boxes, shape=(64, 80), **meta):
    instances = InstanceData(bboxes=boxes if isinstance(boxes, HorizontalBoxes) else torch.tensor(boxes).view(-1, 4))
    return DetDataSample(metainfo=dict(img_shape=shape, batch_input_shape=shape, **meta), gt_instances=instances)


def maps(batch=2, channels=6, sizes=((8, 10), (4, 5))):
    return [torch.randn(batch, channels, *size, dtype=torch.float64) for size in sizes]


SAMPLES = [sample([[8.0, 8.0, 31.0, 50.0], [40.0, 0.0, 60.0, 20.0]]), sample([])]


def test_it_is_the_weighted_sum_over_the_levels():
    student, teacher = maps(), maps()
    loss = FGDLoss(channels=[6, 6], alpha=2.0, beta=3.0, gamma=5.0, lam=7.0, temperature=0.8).double()
    expected = 0.0
    for s, t in zip(student, teacher):
        cells = torch.tensor([[8.0, 8.0, 31.0, 50.0], [40.0, 0.0, 60.0, 20.0]]).double() * s.shape[3] / 80
        pairs = [box_masks(cells, s.shape[2:]), box_masks(cells[:0], s.shape[2:])]
        foreground, background = (torch.stack(m) for m in zip(*pairs))
        parts = focal_distances(s, t, foreground, background, 0.8)
        # What is not trained adds nothing to the maps.
        parts = (*parts, (s - t).square().sum() / 2)
        expected = expected + sum(w * p for w, p in zip((2.0, 3.0, 5.0, 7.0), parts))
    torch.testing.assert_close(loss(student, teacher, SAMPLES), expected)


def test_boxes_are_scaled_from_the_padded_image():
    student, teacher = maps(1), maps(1)
    loss = FGDLoss(channels=[6, 6], beta=0.0, gamma=0.0, lam=0.0).double()
    padded = sample([[0.0, 0.0, 20.0, 20.0]])
    padded.set_metainfo(dict(img_shape=(32, 40)))
    bare = sample([[0.0, 0.0, 20.0, 20.0]])
    assert loss(student, teacher, [padded]).item() == loss(student, teacher, [bare]).item() > 0


def test_boxes_of_mmdets_own_type_are_taken():
    student, teacher = maps(1), maps(1)
    loss = FGDLoss(channels=[6, 6]).double()
    plain, typed = ([[0.0, 0.0, 20.0, 20.0]], HorizontalBoxes([[0.0, 0.0, 20.0, 20.0]]))
    assert loss(student, teacher, [sample(plain)]).item() == loss(student, teacher, [sample(typed)]).item()


def test_a_net_that_equals_its_teacher_has_no_loss_before_training():
    both = maps()
    assert FGDLoss(channels=[6, 6]).double()(both, both, SAMPLES).item() == 0


def test_gradients_are_those_of_the_values_with_trained_contexts():
    student, teacher = maps(sizes=((3, 4),)), maps(sizes=((3, 4),))
    loss = FGDLoss(channels=[6], alpha=1.0, beta=1.0, gamma=1.0, lam=1.0).double()
    for context in (*loss.student_contexts, *loss.teacher_contexts):
        torch.nn.init.normal_(context.transform[-1].weight)
    assert torch.autograd.gradcheck(lambda s: loss([s], teacher, SAMPLES), student[0].requires_grad_())


def test_a_context_is_the_same_at_all_positions():
    context = GlobalContext(6)
    torch.nn.init.normal_(context.transform[-1].weight)
    x = torch.randn(2, 6, 3, 4)
    added = context(x) - x
    assert added.abs().max() > 0.01
    torch.testing.assert_close(added, added[:, :, :1, :1].expand_as(added))
    # Positions have no order.
    torch.testing.assert_close(context(x.flip(2, 3)), context(x).flip(2, 3))


def test_a_context_is_the_mean_weighted_by_softmax():
    context = GlobalContext(2)
    context.transform = torch.nn.Identity()
    x = torch.tensor([[[[1.0, 5.0]], [[2.0, -2.0]]]])
    torch.nn.init.zeros_(context.score.weight)
    torch.testing.assert_close((context(x) - x)[..., 0, 0], torch.tensor([[3.0, 0.0]]))
    context.score.weight.data[0, 0] = math.log(3) / 4  # the second position scores ln 3 more
    torch.testing.assert_close((context(x) - x)[..., 0, 0], torch.tensor([[4.0, -1.0]]))


@pytest.mark.parametrize('samples', [None, [], [DetDataSample()]])
def test_samples_without_boxes_raise(samples):
    with pytest.raises(ValueError, match='FGDLoss: needs ground-truth boxes'):
        FGDLoss(channels=[6, 6]).double()(maps(), maps(), samples)


def test_widths_and_counts_that_differ_raise():
    loss = FGDLoss(channels=[6, 6]).double()
    with pytest.raises(ValueError, match=r'FGDLoss: .*\[6, 6\] channels, got \[6\]'):
        loss(maps()[:1], maps()[:1], SAMPLES)
    with pytest.raises(ValueError, match=r'got \[4, 4\]'):
        loss(maps(channels=4), maps(channels=4), SAMPLES)
    with pytest.raises(ValueError, match=r'differ in shape; .*ConvBN'):
        loss(maps(channels=4), maps(), SAMPLES)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [(dict(beta=-1.0), 'FGDLoss: beta must be at least 0, got -1.0'), (dict(temperature=0), 'temperature must be')],
)
def test_values_out_of_range_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        FGDLoss(channels=[6], **arguments)


# ---- masks


def test_masks_by_hand():
    # Cells 0-1 x 0-1; the smaller box has the last of them; 3 x 5 cells, so that rows and columns are told apart.
    boxes = torch.tensor([[0.2, 0.0, 0.9, 1.0], [1.0, 1.0, 1.0, 1.0]])
    foreground, background = box_masks(boxes, (3, 5))
    expected = torch.tensor([[0.25, 0.25, 0, 0, 0], [0.25, 1.0, 0, 0, 0], [0, 0, 0, 0, 0]])
    assert torch.equal(foreground, expected)
    torch.testing.assert_close(background, (expected == 0) / 11)


def test_a_wide_box_is_wide():
    foreground, _ = box_masks(torch.tensor([[1.0, 2.0, 4.0, 2.0]]), (4, 6))
    assert foreground.nonzero().tolist() == [[2, 1], [2, 2], [2, 3], [2, 4]]
    assert foreground.sum().item() == 1.0


def test_boxes_apart_weigh_alike_whatever_their_size():
    foreground, background = box_masks(torch.tensor([[0.0, 0.0, 1.0, 1.0], [4.0, 4.0, 8.0, 9.0]]), (12, 12))
    assert foreground[:3, :3].sum().item() == pytest.approx(1)
    assert foreground[3:, 3:].sum().item() == pytest.approx(1)
    assert background.sum().item() == pytest.approx(1)


def test_without_boxes_all_is_background():
    foreground, background = box_masks(torch.zeros(0, 4), (2, 3))
    assert not foreground.any()
    assert torch.equal(background, torch.full((2, 3), 1 / 6))


def test_a_box_over_the_map_leaves_no_background():
    foreground, background = box_masks(torch.tensor([[-1.0, -2.0, 9.0, 9.0]]), (3, 3))
    assert torch.equal(foreground, torch.full((3, 3), 1 / 132))  # the box has 11 x 12 cells, 9 of them on the map
    assert not background.any()


# ---- attentions


def test_attention_by_hand():
    # Mean absolute values: of the positions ln 1 and ln 3, of both channels their mean.
    x = torch.tensor([[[[0.0, -math.log(3)]], [[0.0, math.log(3)]]]])
    spatial, channel = absolute_attention(x, temperature=1.0)
    torch.testing.assert_close(spatial, torch.tensor([[[0.5, 1.5]]]))
    torch.testing.assert_close(channel, torch.ones(1, 2))
    spatial, _ = absolute_attention(x, temperature=0.5)
    torch.testing.assert_close(spatial, torch.tensor([[[0.2, 1.8]]]))


def test_attentions_have_mean_one_and_do_not_know_signs():
    x = torch.randn(3, 5, 4, 6, dtype=torch.float64)
    spatial, channel = absolute_attention(x)
    torch.testing.assert_close(spatial.mean((1, 2)), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(channel.mean(1), torch.ones(3, dtype=torch.float64))
    for a, b in zip(absolute_attention(-x), (spatial, channel)):
        assert torch.equal(a, b)


# ---- distances


def masks(batch, size):
    boxes = torch.tensor([[0.0, 0.0, 1.0, 2.0]], dtype=torch.float64)
    return [torch.stack([m] * batch) for m in box_masks(boxes, size)]


def test_distances_by_hand():
    # Flat maps: all attentions are 1. A gap of 2 in each of 3 channels: 3 * 4 over a box, and over the background.
    teacher = torch.full((2, 3, 4, 5), 1.0)
    student = torch.full((2, 3, 4, 5), 3.0)
    of_objects, of_background, of_attention = focal_distances(student, teacher, *masks(2, (4, 5)))
    assert of_objects.item() == pytest.approx(12)
    assert of_background.item() == pytest.approx(12)
    assert of_attention.item() == 0


def test_distances_are_their_sums():
    student, teacher = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64)
    foreground, background = masks(2, (4, 5))
    (spatial, channel), (spatial_s, channel_s) = absolute_attention(teacher, 0.7), absolute_attention(student, 0.7)
    expected = [0.0, 0.0, 0.0]
    for b in range(2):
        for i in range(4):
            for j in range(5):
                expected[2] += (spatial[b, i, j] - spatial_s[b, i, j]).abs() / 2
                for c in range(3):
                    d = spatial[b, i, j] * channel[b, c] * (student[b, c, i, j] - teacher[b, c, i, j]) ** 2 / 2
                    expected[0] += foreground[b, i, j] * d
                    expected[1] += background[b, i, j] * d
        expected[2] += (channel[b] - channel_s[b]).abs().sum() / 2
    for value, wanted in zip(focal_distances(student, teacher, foreground, background, 0.7), expected):
        torch.testing.assert_close(value, wanted)
