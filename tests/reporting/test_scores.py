"""Scores of single images: by hand, and against the hosts' own metrics where those say the same."""

import pytest
import torch
from mmseg.evaluation import IoUMetric

from lckd_mm.reporting.scores import box_f1, image_iou


def test_iou_by_hand():
    truth = torch.tensor([[0, 0, 1, 1], [0, 0, 255, 2]])
    predicted = torch.tensor([[0, 1, 1, 1], [0, 0, 3, 2]])
    # class 0: 3 of 4; class 1: 2 of 3; class 2: 1 of 1; class 3 stands on an ignored pixel alone
    assert image_iou(predicted, truth) == pytest.approx((3 / 4 + 2 / 3 + 1) / 3)
    # a class that is predicted and not there counts as 0
    assert image_iou(torch.tensor([[0, 5]]), torch.tensor([[0, 0]])) == pytest.approx((1 / 2 + 0) / 2)
    assert image_iou(truth, truth) == 1
    assert torch.isnan(torch.tensor(image_iou(predicted, torch.full_like(truth, 255))))


def test_iou_of_one_image_is_the_hosts():
    torch.manual_seed(0)
    truth, predicted = torch.randint(0, 6, (2, 20, 30))
    truth[:3] = 255
    areas = IoUMetric.intersect_and_union(predicted, truth, 6, 255)
    expected = IoUMetric.total_area_to_metrics(*areas, metrics=['mIoU'])['IoU']
    assert image_iou(predicted, truth) == pytest.approx(expected[~torch.isnan(torch.tensor(expected))].mean())


BOXES = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 60]])
LABELS = torch.tensor([1, 2, 2])
SURE = torch.tensor([0.9, 0.8, 0.7])


def test_f1_by_hand():
    assert box_f1(BOXES, LABELS, SURE, BOXES, LABELS) == 1
    # the order of neither side matters
    assert box_f1(BOXES.flip(0), LABELS.flip(0), SURE.flip(0), BOXES, LABELS) == 1
    # one of the three has the wrong class: 2 hits, 1 false, 1 missed
    assert box_f1(BOXES, torch.tensor([1, 2, 0]), SURE, BOXES, LABELS) == pytest.approx(4 / 6)
    # found twice: the second is false
    twice = torch.cat([BOXES, BOXES[:1]])
    assert box_f1(twice, torch.tensor([1, 2, 2, 1]), torch.tensor([0.9, 0.8, 0.7, 0.6]), BOXES, LABELS) == 6 / 7
    # a score below the threshold is no box
    assert box_f1(BOXES, LABELS, torch.tensor([0.9, 0.8, 0.29]), BOXES, LABELS) == pytest.approx(4 / 5)
    # IoU 0.5 exactly is a match, a little less is none
    for right, expected in ((5.0, 1), (4.9, 0)):
        box = torch.tensor([[0.0, 0, right, 10]])
        assert box_f1(box, LABELS[:1], SURE[:1], BOXES[:1], LABELS[:1]) == expected


def test_f1_the_surer_box_takes_the_truth():
    # The less sure one overlaps more, but the truth is taken; it takes the other true box that it overlaps enough.
    truth = torch.tensor([[0.0, 0, 10, 10], [0.0, 2, 10, 12]])
    found = torch.tensor([[0.0, 0, 10, 9], [0.0, 0, 10, 10]])
    same = torch.tensor([3, 3])
    assert box_f1(found, same, torch.tensor([0.9, 0.5]), truth, same) == 1


def test_f1_of_nothing_and_of_the_ignored():
    none, no_labels = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
    assert box_f1(none, no_labels, torch.zeros(0), none, no_labels) == 1
    assert box_f1(BOXES, LABELS, SURE, none, no_labels) == 0
    assert box_f1(none, no_labels, torch.zeros(0), BOXES, LABELS) == 0
    # a box on an ignored object is neither right nor wrong
    assert box_f1(BOXES, LABELS, SURE, BOXES[:2], LABELS[:2]) == pytest.approx(4 / 5)
    assert box_f1(BOXES, LABELS, SURE, BOXES[:2], LABELS[:2], ignored=BOXES[2:]) == 1
