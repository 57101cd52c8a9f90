import math

import pytest
import torch
import torch.nn.functional as F

from lckd_mm.functional import binary_kd_divergence, decoupled_kd, kd_divergence

DOUBLE = torch.float64
FUNCTIONS = [kd_divergence, binary_kd_divergence]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_softmax_form_by_hand():
    # p_teacher = (3/4, 1/4), p_student = (1/2, 1/2) at temperature 2.
    teacher = torch.tensor([[2 * math.log(3.0), 0.0]], dtype=DOUBLE)
    student = torch.zeros(1, 2, dtype=DOUBLE)
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert kd_divergence(student, teacher, tau=2.0).item() == pytest.approx(expected, rel=1e-12)


def test_binary_form_by_hand():
    # Per class p_teacher = 3/4 and 1/2, p_student = 1/2 and 1/2 at temperature 2.
    teacher = torch.tensor([[2 * math.log(3.0), 0.0]], dtype=DOUBLE)
    student = torch.zeros(1, 2, dtype=DOUBLE)
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert binary_kd_divergence(student, teacher, tau=2.0).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize('tau', [0.5, 1.0, 4.0])
def test_softmax_form_equals_torch(tau):
    student, teacher = torch.randn(6, 5, dtype=DOUBLE), torch.randn(6, 5, dtype=DOUBLE)
    expected = F.kl_div(F.log_softmax(student / tau, 1), F.softmax(teacher / tau, 1), reduction='batchmean') * tau**2
    torch.testing.assert_close(kd_divergence(student, teacher, tau).mean(), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize('tau', [0.5, 1.0, 4.0])
def test_binary_form_equals_cross_entropy_less_entropy(tau):
    student, teacher = torch.randn(6, 5, dtype=DOUBLE), torch.randn(6, 5, dtype=DOUBLE)
    p, q = (teacher / tau).sigmoid(), (student / tau).sigmoid()
    cross, own = F.binary_cross_entropy(q, p, reduction='none'), F.binary_cross_entropy(p, p, reduction='none')
    expected = (cross - own).sum(1) * tau**2
    torch.testing.assert_close(binary_kd_divergence(student, teacher, tau), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize('function', FUNCTIONS)
def test_not_negative_and_zero_for_equals(function):
    student, teacher = torch.randn(50, 4, dtype=DOUBLE), torch.randn(50, 4, dtype=DOUBLE)
    assert (function(student, teacher, 3.0) > 0).all()
    assert torch.equal(function(teacher, teacher, 3.0), torch.zeros(50, dtype=DOUBLE))


def test_softmax_form_is_blind_to_a_common_shift_and_the_binary_form_is_not():
    student, teacher = torch.randn(6, 5, dtype=DOUBLE), torch.randn(6, 5, dtype=DOUBLE)
    torch.testing.assert_close(kd_divergence(student + 7, teacher - 3), kd_divergence(student, teacher))
    assert (binary_kd_divergence(teacher + 7, teacher) > 1).all()


@pytest.mark.parametrize('function', FUNCTIONS)
def test_sure_scores_stay_finite(function):
    student, teacher = torch.tensor([[500.0, -500.0]], requires_grad=True), torch.tensor([[-500.0, 500.0]])
    value = function(student, teacher)
    value.sum().backward()
    assert value.item() == pytest.approx(1000.0)
    assert student.grad.tolist() == [[1.0, -1.0]]


@pytest.mark.parametrize('function', FUNCTIONS)
def test_gradcheck(function):
    student = torch.randn(3, 4, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: function(s, torch.ones(3, 4, dtype=DOUBLE).cumsum(1), 2.0), student)


@pytest.mark.parametrize(('function', 'squash'), [(kd_divergence, 'softmax'), (binary_kd_divergence, 'sigmoid')])
def test_gradient_is_tau_times_the_gap_of_probabilities(function, squash):
    student, teacher = torch.randn(6, 5, dtype=DOUBLE, requires_grad=True), torch.randn(6, 5, dtype=DOUBLE)
    function(student, teacher, 4.0).sum().backward()
    p, q = ((x / 4).softmax(1) if squash == 'softmax' else (x / 4).sigmoid() for x in (teacher, student.detach()))
    torch.testing.assert_close(student.grad, 4 * (q - p), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize('function', FUNCTIONS)
def test_shapes_that_differ_raise(function):
    with pytest.raises(ValueError, match=r'student \(2, 3\) and teacher \(2, 4\) differ in shape'):
        function(torch.zeros(2, 3), torch.zeros(2, 4))


# ---- decoupled_kd


def test_decoupled_parts_by_hand():
    # Teacher (1/2, 1/4, 1/4), student (1/4, 1/2, 1/4), target 0.
    teacher, student = (torch.tensor([p]).double().log() for p in ([0.5, 0.25, 0.25], [0.25, 0.5, 0.25]))
    of_target, among = decoupled_kd(student, teacher, torch.tensor([0]))
    assert of_target.item() == pytest.approx(0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75))
    assert among.item() == pytest.approx(0.5 * math.log(0.5 / (2 / 3)) + 0.5 * math.log(0.5 / (1 / 3)))


@pytest.mark.parametrize('shape', [(4, 5), (2, 5, 3, 3)])
@pytest.mark.parametrize('tau', [1.0, 4.0])
def test_decoupled_parts_add_up_to_kd(shape, tau):
    torch.manual_seed(0)
    student, teacher = torch.randn(shape).double(), torch.randn(shape).double()
    target = torch.randint(5, (shape[0], *shape[2:]))
    of_target, among = decoupled_kd(student, teacher, target, tau)
    doubt = 1 - (teacher / tau).softmax(1).gather(1, target.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(of_target + doubt * among, kd_divergence(student, teacher, tau))


def test_decoupled_parts_stay_finite_for_a_sure_teacher():
    teacher = torch.tensor([[200.0, 0.0, -200.0]])
    student = torch.tensor([[-200.0, 0.0, 200.0]], requires_grad=True)
    parts = decoupled_kd(student, teacher, torch.tensor([0]))
    sum(parts).sum().backward()
    assert all(torch.isfinite(p).all() for p in parts)
    assert torch.isfinite(student.grad).all()


def test_decoupled_gradcheck():
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 4, dtype=torch.float64, requires_grad=True), torch.randn(3, 4).double()
    target = torch.tensor([0, 3, 1])
    assert torch.autograd.gradcheck(lambda s: decoupled_kd(s, teacher, target, 2.0), student)


def test_one_class_has_nothing_beside_the_target():
    with pytest.raises(ValueError, match='at least two classes'):
        decoupled_kd(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2).long())
