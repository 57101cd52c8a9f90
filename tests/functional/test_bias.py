"""CEV and SDE against the published check values, and what they do where a rate is zero."""

import math

import pytest
import torch

from lckd_mm.functional import class_bias, confusion_matrix, modal_prediction, one_against_rest

REFERENCE = torch.tensor([[8, 1, 1], [2, 7, 1], [1, 1, 8]])
MODEL = torch.tensor([[6, 3, 1], [1, 8, 1], [2, 2, 6]])


def bias(reference, model, *args, smoothing=0.0):
    return class_bias(one_against_rest(reference, smoothing), one_against_rest(model, smoothing), *args)


def test_the_check_values_in_both_conventions():
    later, earlier = bias(REFERENCE, MODEL), bias(REFERENCE, MODEL, '2021')
    # a = (0, 3/2, 0), b = (1, -1/3, 1): the sums by hand are 145/162 and 23/18.
    assert later.cev == pytest.approx(145 / 162, rel=1e-14)
    assert later.sde == pytest.approx(23 / 18, rel=1e-14)
    assert f'{later.cev:.9f} {later.sde:.9f}' == '0.895061728 1.277777778'
    assert f'{earlier.cev:.6f} {earlier.sde:.6f}' == '4475.308642 90.352533'
    assert later.fpr_change.tolist() == pytest.approx([0, 1.5, 0], abs=1e-15)
    assert later.fnr_change.tolist() == pytest.approx([1, -1 / 3, 1])
    assert later.kept.all()


def test_the_rates_by_hand():
    fpr, fnr = one_against_rest(REFERENCE)
    assert fpr.tolist() == pytest.approx([3 / 20, 2 / 20, 2 / 20])
    assert fnr.tolist() == pytest.approx([2 / 10, 3 / 10, 2 / 10])
    fpr, fnr = one_against_rest(REFERENCE, smoothing=0.5)
    assert fpr.tolist() == pytest.approx([3.5 / 21, 2.5 / 21, 2.5 / 21])
    assert fnr.tolist() == pytest.approx([2.5 / 11, 3.5 / 11, 2.5 / 11])


def test_it_is_not_symmetric_and_zero_for_the_reference_itself():
    assert bias(MODEL, REFERENCE).cev != pytest.approx(bias(REFERENCE, MODEL).cev)
    assert bias(REFERENCE, REFERENCE)[:2] == (0, 0)


def test_a_uniform_worsening_has_no_bias():
    before = torch.full((4, 4), 2) + torch.eye(4, dtype=torch.int64) * 90
    after = torch.full((4, 4), 10) + torch.eye(4, dtype=torch.int64) * 58
    assert bias(before, after)[:2] == pytest.approx((0, 0), abs=1e-15)


def test_runs_are_averaged_before_the_change_is_taken():
    other = torch.tensor([[7, 2, 1], [3, 5, 2], [1, 3, 6]])
    runs = one_against_rest(torch.stack([MODEL, other]))
    averaged = class_bias(one_against_rest(REFERENCE), tuple(r.mean(0) for r in runs))
    both = class_bias(one_against_rest(REFERENCE), runs)
    assert both[:2] == averaged[:2]
    single = [bias(REFERENCE, m).cev for m in (MODEL, other)]
    assert both.cev != pytest.approx(sum(single) / 2)


def test_a_zero_reference_rate_and_an_absent_class_are_left_out():
    def extended(confusion):
        # Class 3 is never missed nor guessed by the reference; class 4 does not occur.
        whole = torch.zeros(5, 5, dtype=torch.int64)
        whole[:3, :3] = confusion
        whole[3, 3] = 10
        return whole

    worse = extended(MODEL)
    worse[3] = torch.tensor([4, 0, 0, 6, 0])
    found = bias(extended(REFERENCE), worse)
    assert found.kept.tolist() == [True, True, True, False, False]
    assert math.isnan(found.fnr_change[3]) and math.isnan(found.fpr_change[4])
    fpr, fnr = one_against_rest(extended(REFERENCE)), one_against_rest(worse)
    expected = class_bias(tuple(r[:3] for r in fpr), tuple(r[:3] for r in fnr))
    assert found[:2] == pytest.approx(expected[:2], rel=1e-12)
    # Smoothing, where asked for, gives the class a rate; an absent class still has none.
    smoothed = bias(extended(REFERENCE), worse, smoothing=0.5)
    assert smoothed.kept.tolist() == [True, True, True, True, False]
    assert smoothed.fnr_change[3] == pytest.approx((4.5 / 11) / (0.5 / 11) - 1)


def test_with_no_class_left_the_scores_are_nan():
    perfect = torch.eye(3, dtype=torch.int64) * 10
    found = bias(perfect, MODEL)
    assert math.isnan(found.cev) and math.isnan(found.sde)
    assert not found.kept.any()


def test_confusion_by_hand():
    truth, predicted = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 0])
    assert confusion_matrix(truth, predicted, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    weighed = confusion_matrix(truth, predicted, 3, torch.tensor([5, 6, 7, 8]))
    assert weighed.tolist() == [[5, 6, 0], [0, 7, 0], [8, 0, 0]]


def test_the_modal_prediction_is_the_most_frequent_and_of_equals_the_smallest():
    runs = torch.tensor([[2, 1, 0, 2], [2, 0, 1, 2], [1, 0, 2, 0]])
    assert modal_prediction(runs, 3).tolist() == [2, 0, 0, 2]
    assert modal_prediction(torch.tensor([[1, 2], [2, 1]]), 3).tolist() == [1, 1]


def test_a_class_outside_raises():
    with pytest.raises(ValueError, match='outside the 3 classes'):
        confusion_matrix(torch.tensor([3]), torch.tensor([0]), 3)
