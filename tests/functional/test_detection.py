import math

import pytest
import torch

from lckd_mm.functional import absolute_attention, box_masks, focal_distances


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# ---- masks


def test_masks_by_hand():
    # Cells 0-1 x 0-1, of which the smaller box has the last one; 3 x 5 cells, so that rows and columns are told apart.
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
    assert torch.equal(foreground, torch.full((3, 3), 1 / 132))  # 11 x 12 cells, of which 9 are on the map
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


def test_equal_maps_have_no_distance():
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    assert [d.item() for d in focal_distances(x, x, *masks(2, (4, 5)))] == [0, 0, 0]


def test_gradients_are_those_of_the_values():
    student = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: focal_distances(s, teacher, *masks(2, (4, 5))), student)


def test_shapes_that_differ_raise():
    with pytest.raises(ValueError, match=r'student .* and teacher .* differ in shape; .*ConvBN'):
        focal_distances(torch.zeros(1, 3, 4, 5), torch.zeros(1, 6, 4, 5), *masks(1, (4, 5)))
