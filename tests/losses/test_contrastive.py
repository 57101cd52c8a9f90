import math

import pytest
import torch
import torch.nn.functional as F
from mmengine.structures import InstanceData
from mmpretrain.structures import DataSample

from lckd_mm.losses import CRDLoss, VIDLoss

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# ---- VIDLoss


def test_vid_by_hand():
    loss = VIDLoss([1], [1], variance=2.0).double()
    for layer in loss.means[0][::2]:
        layer.weight.data.fill_(2.0)
    # 3 becomes 24, and -3 becomes 0.
    student, teacher = torch.tensor([[3.0], [-3.0]], dtype=DOUBLE), torch.tensor([[25.0], [2.0]], dtype=DOUBLE)
    expected = ((1 / 2 + math.log(2)) + (4 / 2 + math.log(2))) / 2 / 2
    assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-6)
    for variance in (5.0, 2e-5, 1e4):
        value = VIDLoss([3], [2], variance)(torch.zeros(1, 2), torch.zeros(1, 3)).item()
        assert value == pytest.approx(math.log(variance) / 2, rel=1e-5)


def test_vid_is_torchs_gaussian_likelihood_summed_over_layers():
    loss = VIDLoss([6, 4], [5, 3]).double()
    student = [torch.randn(2, 5, 4, 4).double(), torch.randn(2, 3).double()]
    teacher = [torch.randn(2, 6, 4, 4).double(), torch.randn(2, 4).double()]
    for scale in loss.scales:
        scale.data.normal_()
    weights = [[layer.weight[..., 0] for layer in net[::2]] for net in loss.means]
    expected = 0
    for (first, second, third), scale, s, t in zip(weights, loss.scales, student, teacher):
        s, t = (x.movedim(1, -1) for x in (s, t))
        predicted = F.relu(F.relu(s @ first.T) @ second.T) @ third.T
        variance = ((1 + scale.exp()).log() + 1e-5).flatten().expand_as(t)
        expected += F.gaussian_nll_loss(predicted, t, variance, eps=0)
    torch.testing.assert_close(loss(student, teacher), expected, rtol=1e-9, atol=0)
    tokens = [x.flatten(2).mT for x in (student[0], teacher[0])]
    assert loss([tokens[0], student[1]], [tokens[1], teacher[1]]).item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize('sizes', [((8, 6), (4, 3)), ((4, 3), (8, 6)), ((8, 3), (4, 6))])
def test_vid_pools_the_larger_map(sizes):
    loss = VIDLoss([4], [3])
    student, teacher = torch.randn(2, 3, *sizes[0]), torch.randn(2, 4, *sizes[1])
    pooled = [F.adaptive_avg_pool2d(x, (4, 3)) for x in (student, teacher)]
    torch.testing.assert_close(loss(student, teacher), loss(*pooled))


def test_vid_trains_the_student_its_layers_and_its_variances():
    loss, student = VIDLoss([4], [3]), torch.randn(2, 3, 4, 4, requires_grad=True)
    loss(student, torch.randn(2, 4, 4, 4)).backward()
    assert len(list(loss.parameters())) == 4
    assert all(x.grad.any() for x in (student, *loss.parameters()))


def test_vids_variance_becomes_that_of_the_residuals():
    loss = VIDLoss([2], [3])
    student, teacher = torch.randn(64, 3), torch.randn(64, 2) * torch.tensor([0.5, 3.0])
    for parameter in loss.means.parameters():
        parameter.requires_grad_(False)
    optimizer = torch.optim.LBFGS(loss.scales, max_iter=200, line_search_fn='strong_wolfe', tolerance_change=1e-12)

    def closure():
        optimizer.zero_grad()
        value = loss(student, teacher)
        value.backward()
        return value

    optimizer.step(closure)
    residual = teacher - loss.means[0](student[..., None])[..., 0]
    variance = F.softplus(loss.scales[0]).flatten() + 1e-5
    torch.testing.assert_close(variance, residual.square().mean(0), rtol=1e-2, atol=0)


def test_vid_refuses_what_does_not_fit():
    with pytest.raises(
        ValueError, match=r'VIDLoss: built for features of \[3\] channels, got \[4\]; leave out the conn'
    ):
        VIDLoss([4], [3])(torch.zeros(2, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r'VIDLoss: .*; tap layers with as many tokens'):
        VIDLoss([4], [3])(torch.zeros(2, 5, 3), torch.zeros(2, 6, 4))
    with pytest.raises(ValueError, match='VIDLoss: 2 student tensors, but 1'):
        VIDLoss([4], [3, 3])
    with pytest.raises(ValueError, match='variance must be above 1e-05'):
        VIDLoss([4], [3], variance=0)


# ---- CRDLoss


def samples(indices, labels=None):
    made = [DataSample(metainfo=dict(sample_idx=i)) for i in indices]
    return made if labels is None else [one.set_gt_label(label) for one, label in zip(made, labels)]


def crd(n=6, **arguments):
    arguments = dict(channels=[4], student_channels=[3], dim=2, negatives=5) | arguments
    return CRDLoss(n, **arguments).double()


def test_crd_by_hand():
    """Two images in all, so that the one negative of each is the other image."""
    loss = crd(2, negatives=1, tau=0.5, momentum=0.25)
    ours, theirs = (torch.tensor(x, dtype=DOUBLE) for x in ([[1.0, 0.0], [0.6, 0.8]], [[0.0, 1.0], [1.0, 0.0]]))
    for layer in (loss.student, loss.teacher):
        layer.weight.data.zero_()
        layer.weight.data[:, :2] = torch.eye(2)
        layer.bias.data.zero_()
    memory = [loss.teacher_memory.clone(), loss.student_memory.clone()]
    student = torch.cat([3 * ours, torch.zeros(2, 1)], 1).double()  # length does not matter
    teacher = torch.cat([theirs, torch.zeros(2, 2)], 1).double()

    def part(rows, memory):
        scores = (rows @ memory.T / 0.5).exp()
        p = scores / (2 * scores.mean())
        value = 0
        for i in range(2):
            same, other = p[i, i], p[i, 1 - i]
            value -= math.log(same / (same + 0.5 + 1e-7)) + math.log(0.5 / (other + 0.5 + 1e-7))
        return value / 2

    expected = part(ours, memory[0]) + part(theirs, memory[1])
    assert loss(student, teacher, samples([0, 1])).item() == pytest.approx(expected, rel=1e-9)
    for stored, before, rows in zip((loss.teacher_memory, loss.student_memory), memory, (theirs, ours)):
        torch.testing.assert_close(stored, F.normalize(0.25 * before + 0.75 * rows))


def test_crds_constants_are_those_of_the_first_batch_and_evaluation_changes_nothing():
    loss = crd()
    x = [(torch.randn(3, 3).double(), torch.randn(3, 4).double(), samples([4, 0, 2])) for _ in range(2)]
    before = {k: v.clone() for k, v in loss.state_dict().items() if k != 'draws'}
    loss.eval()(*x[0])
    assert all(torch.equal(v, loss.state_dict()[k]) for k, v in before.items())
    loss.train()(*x[0])
    first = loss.constants.clone()
    loss(*x[1])
    assert (first > 0).all() and torch.equal(loss.constants, first)
    changed = (loss.student_memory != before['student_memory']).any(1)
    assert changed.nonzero().flatten().tolist() == [0, 2, 4]


def test_negatives_are_of_other_classes_as_far_as_these_are_known_and_all_occur():
    loss = crd(8, negatives=400)
    loss.classes[:6] = torch.tensor([1, 0, 1, 2, 0, 1])
    drawn = loss._negatives(torch.tensor([0, 3, 1]), torch.tensor([1, 2, 0]))
    assert [sorted(set(row.tolist())) for row in drawn] == [[1, 3, 4, 6, 7], [0, 1, 2, 4, 5, 6, 7], [0, 2, 3, 5, 6, 7]]
    counts = drawn[0].bincount(minlength=8)[[1, 3, 4, 6, 7]]
    assert counts.min() > 50  # 80 are expected
    unlabelled = loss._negatives(torch.tensor([0, 7]), None)
    assert [sorted(set(row.tolist())) for row in unlabelled] == [list(range(1, 8)), list(range(7))]
    assert not torch.equal(unlabelled, loss._negatives(torch.tensor([0, 7]), None))  # new ones each time


def test_crd_learns_the_labels_and_leaves_the_trainings_random_numbers_alone():
    loss, student, teacher = crd(), torch.randn(2, 3).double(), torch.randn(2, 4).double()
    state = torch.get_rng_state()
    loss(student, teacher, samples([5, 1], [7, 3]))
    assert torch.equal(state, torch.get_rng_state())
    assert loss.classes.tolist() == [-1, 3, -1, -1, -1, 7]


def test_crd_draws_features_of_one_image_together():
    loss = crd(16, channels=[4], student_channels=[4], dim=4, negatives=8)
    images = torch.randn(16, 4).double()
    student = torch.nn.Linear(4, 4).double()
    optimizer = torch.optim.Adam([*student.parameters(), *loss.parameters()], 0.03)
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(student(images), images, samples(range(16)))
        value.backward()
        optimizer.step()
    ours, theirs = (F.normalize(net(x), dim=1) for net, x in ((loss.student, student(images)), (loss.teacher, images)))
    assert ((ours @ theirs.T).argmax(1) == torch.arange(16)).float().mean() > 0.9


def test_crd_goes_on_from_its_state():
    one, two = crd(), crd()
    x = torch.randn(2, 3).double(), torch.randn(2, 4).double(), samples([0, 3], [0, 1])
    one(*x)
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(*x), two(*x))


def test_crd_takes_the_mean_over_positions():
    student, teacher = torch.randn(2, 3, 4, 4).double(), torch.randn(2, 4, 2, 2).double()
    loss, values = crd().eval(), []
    for shaped in (lambda x: x, lambda x: x.flatten(2).mT, lambda x: x.mean((2, 3))):
        loss.draws.zero_()
        values.append(loss(shaped(student), shaped(teacher), samples([0, 3])).item())
    assert values == pytest.approx([values[0]] * 3, rel=1e-12)


def test_crds_gradient_reaches_the_student_and_its_layers_after_the_memory_has_changed():
    loss, student = crd(), torch.randn(2, 3, dtype=DOUBLE, requires_grad=True)
    loss(student, torch.randn(2, 4).double(), samples([0, 3])).backward()
    assert all(x.grad.any() for x in (student, *loss.parameters()))


def test_crd_refuses_what_does_not_fit():
    x = torch.zeros(1, 3).double(), torch.zeros(1, 4).double()
    with pytest.raises(
        ValueError, match=r"CRDLoss: .*sample_idx\), which the data samples lack; add 'sample_idx' to the"
    ):
        crd()(*x, [DataSample()])
    with pytest.raises(ValueError, match='CRDLoss: needs the index'):
        crd()(*x, [DataSample(gt_instances=InstanceData())])
    with pytest.raises(ValueError, match=r'CRDLoss: needs the index'):
        crd()(*x, None)
    with pytest.raises(ValueError, match='a sample has the index 6, but samples=6'):
        crd()(*x, samples([6]))
    with pytest.raises(ValueError, match='compares one feature of each net, got 2 and 2; give each a term of its own'):
        crd(channels=[4, 4], student_channels=[3, 3])
    with pytest.raises(ValueError, match='samples must be at least 2, got 1'):
        crd(1)
