import math

import pytest
import torch

from lckd_mm.losses import ATLoss, ExploreLoss, FitNetsLoss, FTLoss, OFDLoss

FT, OFD, FITNETS = (dict(type=f'lckd_mm.{name}') for name in ('FTLoss', 'OFDLoss', 'FitNetsLoss'))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def maps(*shape):
    return torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)


def test_the_papers_exploration_by_hand():
    student, teacher = torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[1.0, 0.0]]]])
    # -(|0.6 - 1| + |0.8 - 0|) / 2
    assert ExploreLoss(FT)(student, teacher).item() == pytest.approx(-0.6)


@pytest.mark.parametrize('loss', [FTLoss, ATLoss])
def test_negated_is_the_loss_with_a_minus(loss):
    student, teacher = maps(3, 4, 2, 2)
    explore = ExploreLoss(dict(type=f'lckd_mm.{loss.__name__}'))
    assert torch.equal(explore(student, teacher), -loss()(student, teacher))
    assert explore(student, student).item() == pytest.approx(0, abs=1e-12)


def test_the_bounded_losses_are():
    for _ in range(50):
        student, teacher = maps(2, 3, 2, 2)
        student = student * 10 ** torch.randn((), dtype=torch.float64)
        # Unit vectors of n entries: an absolute sum of 2 sqrt(n) at most, a squared one of 4.
        assert FTLoss()(student, teacher) <= 2 / math.sqrt(12)
        assert ATLoss()(student, teacher) <= 2 / 4  # entries of 0 or above


def test_bounded_forms_by_hand():
    student, teacher = torch.full((1, 1, 1, 1), 3.0), torch.full((1, 1, 1, 1), 1.0)
    assert FitNetsLoss()(student, teacher).item() == 4
    assert ExploreLoss(FITNETS, 'saturating', 12.0)(student, teacher).item() == pytest.approx(-3)  # -12 * 4 / 16
    assert ExploreLoss(FITNETS, 'hinge', 6.0)(student, teacher).item() == 2
    assert ExploreLoss(FITNETS, 'hinge', 4.0)(student, teacher).item() == 0


def test_saturating_begins_like_the_negative_and_never_passes_its_bound():
    student, teacher = maps(2, 3, 2, 2)
    near = teacher + 1e-4 * student
    explore = ExploreLoss(OFD, 'saturating', 5.0)
    torch.testing.assert_close(explore(near, teacher), -OFDLoss()(near, teacher), rtol=1e-4, atol=0)
    values = [explore(scale * student, teacher).item() for scale in (10, 100, 1e4)]
    assert 0 > values[0] > values[1] > values[2] > -5


@pytest.mark.parametrize('form', ExploreLoss.FORMS)
def test_its_step_leads_away(form):
    student, teacher = maps(2, 3, 2, 2)
    student.requires_grad_()
    ExploreLoss(FT, form, None if form == 'negated' else 1.0)(student, teacher).backward()
    with torch.no_grad():
        assert FTLoss()(student - 0.1 * student.grad, teacher) > FTLoss()(student, teacher)


def test_what_has_no_minimum_is_refused():
    with pytest.raises(ValueError, match=r"OFDLoss can grow without end, .* form='saturating' or 'hinge' with a bound"):
        ExploreLoss(OFD)


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (dict(loss=FT, form='negative'), "unknown form 'negative', expected one of negated, saturating, hinge"),
        (dict(loss=FT, bound=1.0), "form='negated' has no bound"),
        (dict(loss=OFD, form='hinge'), "form='hinge' needs a bound, in units of OFDLoss"),
        (dict(loss=OFD, form='saturating', bound=0.0), 'ExploreLoss: bound must be above 0, got 0.0'),
        (dict(loss=dict(OFD, tau=1)), 'ExploreLoss: loss: OFDLoss .*tau'),
    ],
)
def test_mistakes(arguments, says):
    with pytest.raises(ValueError, match=says):
        ExploreLoss(**arguments)
