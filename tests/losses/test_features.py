import math

import pytest
import torch

from lckd_mm.functional import transmitting_matrix
from lckd_mm.losses import (
    ABLoss,
    AFDLoss,
    ATLoss,
    CosineLoss,
    CWDLoss,
    FitNetsLoss,
    FSPLoss,
    FTLoss,
    MGDLoss,
    OFDLoss,
    PKDLoss,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def maps(n=3, batch=2, widths=(3, 4, 5)):
    return [torch.randn(batch, widths[i], 2 ** (3 - i), 2 ** (3 - i), dtype=torch.float64) for i in range(n)]


def row(*values):
    return torch.tensor(values).view(1, -1, 1, 1)


def test_ofd_by_hand():
    student = [torch.full((1, 1, 1, 2), 3.0), torch.full((1, 1, 1, 1), -5.0)]
    teacher = [torch.full((1, 1, 1, 2), 1.0), torch.full((1, 1, 1, 1), -1.0)]
    # Twice 2^2 at half the weight; the second layer's student is below a teacher that the ReLU cuts.
    assert OFDLoss()(student, teacher).item() == 4.0
    assert OFDLoss(layer_weights=[2, 1])(student, teacher).item() == 16.0
    assert OFDLoss()(student[0], teacher[0]).item() == 8.0
    #               both below   student above   teacher positive   both positive
    value = OFDLoss()(row(-3.0, -1.0, -4.0, 2.0), row(-2.0, -2.0, 1.0, 5.0))
    assert value.item() == 0 + 1 + 25 + 9
    positive = [x.abs() + 0.1 for x in maps()]
    student = [torch.randn_like(x) for x in positive]
    expected = sum(w * (s - t).square().sum() / 2 for w, s, t in zip((0.25, 0.5, 1.0), student, positive))
    torch.testing.assert_close(OFDLoss()(student, positive), expected)


def test_ofd_has_no_gradient_where_the_relu_hides_the_difference():
    student = row(-3.0, -1.0).requires_grad_()
    OFDLoss()(student, row(-2.0, -2.0)).backward()
    assert student.grad.flatten().tolist() == [0.0, 2.0]


@pytest.mark.parametrize(
    'loss',
    [OFDLoss(), ABLoss(), ATLoss(), FTLoss(), CWDLoss(), MGDLoss(), PKDLoss(), CosineLoss(), AFDLoss([3]).double()],
    ids=lambda x: type(x).__name__,
)
def test_gradients_are_those_of_the_values(loss):
    student, teacher = torch.randn(2, 2, 3, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student.requires_grad_())


def test_mgd_is_the_sum_over_levels_of_sums_over_each_sample():
    student, teacher = maps(), maps()
    expected = sum((s - t).square().sum() / 2 for s, t in zip(student, teacher))
    torch.testing.assert_close(MGDLoss()(student, teacher), expected)
    assert MGDLoss()(torch.ones(4, 3), torch.full((4, 3), 3.0)).item() == 12.0
    assert MGDLoss()(torch.ones(0, 3), torch.ones(0, 3)) == 0
    with pytest.raises(ValueError, match=r'MGDLoss: student .*ConvBN'):
        MGDLoss()(maps(1), maps(1, widths=(9,)))


def test_fitnets_is_the_mean_over_layers_of_mean_squares():
    student, teacher = maps(), maps()
    expected = sum((s - t).square().mean() for s, t in zip(student, teacher)) / 3
    torch.testing.assert_close(FitNetsLoss()(student, teacher), expected)
    assert FitNetsLoss()(torch.ones(2, 3), torch.full((2, 3), 3.0)).item() == 4.0


def test_at_by_hand_and_takes_other_widths():
    student = torch.tensor([[[[3.0, 0.0]], [[0.0, 4.0]]]])  # sums of squares 9 and 16
    length = math.hypot(9, 16)
    expected = ((9 / length - 1) ** 2 + (16 / length) ** 2) / 2
    for teacher in (torch.tensor([[[[2.0, 0.0]]]]), torch.tensor([[[[7.0, 0.0]]]])):
        assert ATLoss()(student, teacher).item() == pytest.approx(expected)
    levels = [ATLoss()(s, t) for s, t in zip(maps(), maps(widths=(6, 7, 8)))]
    torch.manual_seed(0)
    torch.testing.assert_close(ATLoss()(*zip(*zip(maps(), maps(widths=(6, 7, 8))))), sum(levels) / 3)


def test_fsp_equals_its_matrices():
    student, teacher = maps(), maps()
    expected = sum(
        (transmitting_matrix(*student[i : i + 2]) - transmitting_matrix(*teacher[i : i + 2])).square().mean()
        for i in range(2)
    )
    torch.testing.assert_close(FSPLoss()(student, teacher), expected / 2)


def test_ab_by_hand_and_sees_signs_only():
    student, teacher = row(2.0, 0.5, -1.0, -2.0, 0.5), row(1.0, 1.0, 1.0, -1.0, 0.0)
    assert ABLoss()(student, teacher).item() == 0 + 0.25 + 4 + 0 + 2.25
    assert ABLoss(margin=3.0)(student, 10 * teacher).item() == 1 + 6.25 + 16 + 1 + 12.25
    assert ABLoss()([student, student], [teacher, teacher]).item() == 1.5 * 6.5


@pytest.mark.parametrize('loss', [OFDLoss(), FitNetsLoss(), ATLoss(), FSPLoss()], ids=lambda x: type(x).__name__)
def test_a_net_that_equals_its_teacher_has_no_loss(loss):
    both = [x.abs() for x in maps()]
    assert loss(both, both).item() == 0


@pytest.mark.parametrize(
    'loss', [OFDLoss(), FitNetsLoss(), ATLoss(), FSPLoss(), ABLoss()], ids=lambda x: type(x).__name__
)
def test_a_step_against_the_gradient_lowers_the_loss(loss):
    student, teacher = [x.requires_grad_() for x in maps()], maps()
    before = loss(student, teacher)
    gradients = torch.autograd.grad(before, student)
    assert all(g.any() for g in gradients)
    moved = [x - 1e-4 * g for x, g in zip(student, gradients)]
    assert loss(moved, teacher) < before


@pytest.mark.parametrize(
    ('loss', 'student', 'teacher', 'says'),
    [
        (OFDLoss(), maps(3), maps(2), 'OFDLoss: 3 student tensors, but 2'),
        (OFDLoss([1.0]), maps(2), maps(2), 'OFDLoss: 1 layer_weights for 2 layers'),
        (OFDLoss(), maps(1), maps(1, widths=(9,)), r'OFDLoss: student .* differ in shape; .*ConvBN'),
        (ABLoss(), maps(1), maps(1, widths=(9,)), 'ABLoss: student .* differ in shape'),
        (FitNetsLoss(), maps(1), maps(1, widths=(9,)), 'FitNetsLoss: student .* differ in shape'),
        (ATLoss(), maps(1), [x[..., :2] for x in maps(1)], r'ATLoss: student .* differ in shape; .*MatchSize'),
        (
            ATLoss(),
            [torch.zeros(2, 3)],
            [torch.zeros(2, 3)],
            r'ATLoss: expected a map \(B, C, H, W\) or tokens \(B, N, C\), got shape \(2, 3\)',
        ),
        (FTLoss(), maps(1), maps(1, widths=(9,)), 'FTLoss: student .* differ in shape'),
        (CWDLoss(), maps(1), maps(1, widths=(9,)), 'CWDLoss: student .* differ in shape'),
        (AFDLoss([3]).double(), maps(1, widths=(9,)), maps(1), 'AFDLoss: student .* differ in shape'),
        (FSPLoss(), maps(1), maps(1), 'FSPLoss: needs at least two taps'),
        (FSPLoss(), maps(2), maps(3), 'FSPLoss: 2 student tensors, but 3'),
        (FSPLoss(), maps(2), maps(2, widths=(3, 9)), r'FSPLoss: .*3, 4.*3, 9'),
    ],
)
def test_what_does_not_fit_raises(loss, student, teacher, says):
    with pytest.raises(ValueError, match=says):
        loss(student, teacher)


def test_a_margin_that_is_not_above_zero_raises():
    with pytest.raises(ValueError, match='ABLoss: margin must be above 0, got 0'):
        ABLoss(margin=0)


def test_ft_by_hand_and_has_no_scale():
    student, teacher = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 5.0]])
    # (|0.6 - 1| + |0.8 - 0| + 0 + 0) / 4
    for scale in (1, 7):
        assert FTLoss()(scale * student, teacher).item() == pytest.approx(0.3)
    assert FTLoss()([student, student], [teacher, student]).item() == pytest.approx(0.15)


def test_afd_begins_as_the_mean_square_and_learns_its_attention():
    student, teacher = maps(), maps()
    loss = AFDLoss(channels=[3, 4, 5], reduction=1).double()
    expected = sum((s - t).square().mean() for s, t in zip(student, teacher)) / 3
    torch.testing.assert_close(loss(student, teacher), expected)
    for attention in loss.attentions:
        torch.nn.init.normal_(attention[-1].weight)
    loss(student, teacher).backward()
    assert all(p.grad.abs().max() > 0 for p in loss.parameters())


def test_afd_weighs_channels_by_the_teacher_alone():
    teacher = [torch.randn(2, 3, 4, 4)]
    loss = AFDLoss(channels=[3])
    torch.nn.init.normal_(loss.attentions[0][-1].weight)
    weights = torch.cat([loss([teacher[0] + unit.view(1, 3, 1, 1)], teacher)[None] for unit in torch.eye(3)])
    hidden = loss.attentions[0][1](loss.attentions[0][0](teacher[0].abs().mean((2, 3))))
    expected = torch.softmax(loss.attentions[0][2](hidden), 1).mean(0)
    torch.testing.assert_close(weights, expected)


def test_afd_of_other_channels_raises():
    with pytest.raises(ValueError, match=r'AFDLoss: .*\[3, 4, 6\] channels, got \[3, 4, 5\]'):
        AFDLoss(channels=[3, 4, 6]).double()(maps(), maps())
    with pytest.raises(ValueError, match='reduction must be at least 1'):
        AFDLoss(channels=[3], reduction=0)


def test_cwd_by_hand():
    # Two positions: the teacher's channel is even, the student's e^2 to 1, at temperature 2 e to 1.
    student, teacher = torch.tensor([[[[2.0, 0.0]]]]), torch.zeros(1, 1, 1, 2)
    p = 1 / (1 + math.exp(-1))
    expected = 4 * (0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1 - p)))
    assert CWDLoss(tau=2.0)(student, teacher).item() == pytest.approx(expected, rel=1e-6)
    assert CWDLoss(tau=2.0)([student, teacher], [teacher, teacher]).item() == pytest.approx(expected / 2, rel=1e-6)


def test_cwd_does_not_see_what_is_added_to_a_channel():
    student, teacher = maps(), maps()
    moved = [x + torch.randn(2, x.shape[1], 1, 1) for x in student]
    torch.testing.assert_close(CWDLoss()(moved, teacher), CWDLoss()(student, teacher))


def test_cwd_without_positions_raises():
    with pytest.raises(ValueError, match=r'CWDLoss: expected a map .*\(2, 3\)'):
        CWDLoss()(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match='tau must be above 0'):
        CWDLoss(tau=0)


def test_pkd_is_one_minus_the_correlation_of_the_channels():
    student, teacher = maps(), maps()
    expected = 0.0
    for s, t in zip(student, teacher):
        rows = [(x.transpose(0, 1).flatten(1)) for x in (s, t)]
        r = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(*rows)])
        count = rows[0].shape[1]
        expected = expected + (1 - r.mean()) * (count - 1) / count
    # The small number beside the deviation is not in the correlation.
    torch.testing.assert_close(PKDLoss()(student, teacher), expected, rtol=1e-5, atol=0)


def test_pkd_ignores_scale_and_offset_and_takes_constant_channels():
    student, teacher = maps(1), maps(1)
    moved = [3 * x + torch.randn(1, 3, 1, 1) for x in student]
    torch.testing.assert_close(PKDLoss()(moved, teacher), PKDLoss()(student, teacher), rtol=1e-5, atol=0)
    flat = torch.ones(2, 3, 4, 4, requires_grad=True)
    value = PKDLoss()(flat, teacher[0][..., :4, :4])
    value.backward()
    assert value.item() == pytest.approx(0.5 * 31 / 32, rel=1e-4) and flat.grad.isfinite().all()
    with pytest.raises(ValueError, match=r'PKDLoss: student .*ConvBN'):
        PKDLoss()(maps(1), maps(1, widths=(9,)))


def test_cosine_by_hand_on_maps_tokens_and_vectors():
    # cosines 3/5, -1 and 0 (one feature is 0)
    student = torch.tensor([[3.0, 4.0], [1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    teacher = torch.tensor([[2.0, 0.0], [-7.0, -7.0], [1.0, 5.0]], dtype=torch.float64)
    expected = (0.4 + 2 + 1) / 3
    assert CosineLoss()(student, teacher).item() == pytest.approx(expected, rel=1e-12)
    for shaped in (lambda x: x[None], lambda x: x.T[None, :, :, None]):
        assert CosineLoss()(shaped(student), shaped(teacher)).item() == pytest.approx(expected, rel=1e-12)
    assert CosineLoss()([student, student], [teacher, student]).item() == pytest.approx((expected + 1 / 3) / 2)


def test_cosine_ignores_lengths_and_a_zero_feature_has_no_gradient():
    student, teacher = maps(1)[0], maps(1)[0]
    longer = student * torch.rand(2, 1, 8, 8, dtype=torch.float64) * 9
    torch.testing.assert_close(CosineLoss()(longer, teacher), CosineLoss()(student, teacher))
    dead = torch.zeros(2, 3, requires_grad=True)
    CosineLoss()(dead, torch.randn(2, 3)).backward()
    assert not dead.grad.any()
    with pytest.raises(ValueError, match=r'CosineLoss: student .*Linear'):
        CosineLoss()(torch.zeros(2, 3), torch.zeros(2, 4))
