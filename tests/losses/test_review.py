import pytest
import torch
import torch.nn.functional as F

from lckd_mm.losses import ReviewKDLoss

DOUBLE = torch.float64
#: Two maps and a pooled vector of each net; the teacher's second map is larger.
STUDENT, TEACHER = ((2, 4, 8, 8), (2, 6, 3, 3), (2, 6)), ((2, 5, 8, 8), (2, 7, 6, 6), (2, 9))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def features():
    return ([torch.randn(shape, dtype=DOUBLE) for shape in shapes] for shapes in (STUDENT, TEACHER))


def built(**arguments):
    return ReviewKDLoss([5, 7, 9], [4, 6, 6], **arguments).double()


def at_scales(s, t):
    """The hierarchical comparison, from a table: side of the map to (side, weight)."""
    pools = {8: [(4, 0.5), (2, 0.25), (1, 0.125)], 6: [(4, 0.5), (2, 0.25), (1, 0.125)], 1: []}[t.shape[2]]
    total = F.mse_loss(s, t)
    for side, weight in pools:
        total = total + weight * F.mse_loss(F.adaptive_avg_pool2d(s, side), F.adaptive_avg_pool2d(t, side))
    return total / (1 + sum(weight for _, weight in pools))


def test_it_is_the_papers_fusions_at_its_scales():
    loss, (student, teacher) = built(), features()
    net = loss.fusions

    def normed(x):
        return F.batch_norm(x, None, None, training=True)

    def out(i, x):
        return normed(F.conv2d(x, net[i].expand[0].weight, padding=1))

    def gated(i, x, deeper):
        x = normed(F.conv2d(x, net[i].reduce[0].weight))
        deeper = F.interpolate(deeper, x.shape[2:], mode='nearest')
        gates = torch.sigmoid(F.conv2d(torch.cat([x, deeper], 1), net[i].gate.weight, net[i].gate.bias))
        return x * gates[:, :1] + deeper * gates[:, 1:]

    deepest = normed(F.conv2d(student[2][..., None, None], net[2].reduce[0].weight))
    middle = F.interpolate(gated(1, student[1], deepest), (6, 6), mode='nearest')
    finest = gated(0, student[0], middle)
    outputs = out(0, finest), out(1, middle), out(2, deepest)
    targets = teacher[0], teacher[1], teacher[2][..., None, None]
    expected = sum(at_scales(*pair) for pair in zip(outputs, targets))
    torch.testing.assert_close(loss(student, teacher), expected, rtol=1e-9, atol=0)


def test_scales_not_smaller_than_the_map_are_left_out_and_the_weights_move_up():
    """On a map of 4 x 4 the 2 x 2 pooled one has weight 1/2, the mean 1/4."""
    loss = ReviewKDLoss([3], [3]).double()
    student, teacher = (torch.randn(2, 3, 4, 4, dtype=DOUBLE) for _ in range(2))
    output, _ = loss.fusions[0](student, None, (4, 4))
    gaps = [F.mse_loss(F.adaptive_avg_pool2d(output, k), F.adaptive_avg_pool2d(teacher, k)) for k in (4, 2, 1)]
    torch.testing.assert_close(loss(student, teacher), (gaps[0] + gaps[1] / 2 + gaps[2] / 4) / 1.75)
    wide = torch.randn(2, 3, 2, 8, dtype=DOUBLE)  # not square: 1 x 1 alone
    output, _ = loss.fusions[0](wide, None, (2, 8))
    gap = F.mse_loss(output, wide) + F.mse_loss(output.mean((2, 3)), wide.mean((2, 3))) / 2
    torch.testing.assert_close(loss(wide, wide), gap / 1.5)


@pytest.mark.parametrize(('width', 'used'), [(512, 6), (2, 2)])
def test_fusions_are_as_wide_as_the_last_feature_at_most(width, used):
    loss = built(width=width)
    assert [net.reduce[0].out_channels for net in loss.fusions] == [used] * 3
    assert [net.gate is None for net in loss.fusions] == [False, False, True]


def test_the_gradient_reaches_every_stage_and_every_layer_and_not_the_teacher():
    loss, (student, teacher) = built(), features()
    for x in student:
        x.requires_grad_()
    loss(student, teacher).backward()
    assert all(x.grad.any() for x in student)
    assert all(p.grad is not None for p in loss.parameters())


def test_what_does_not_fit_is_refused():
    student, teacher = features()
    with pytest.raises(
        ValueError, match=r'ReviewKDLoss: built for features of \[4, 6, 6\] channels, got \[5, 6, 6\]; '
    ):
        built()([torch.zeros(2, 5, 8, 8), *student[1:]], teacher)
    with pytest.raises(ValueError, match=r'ReviewKDLoss: built for features of \[5, 7, 9\] channels'):
        built()(student, [teacher[0], teacher[0], teacher[2]])
    with pytest.raises(ValueError, match='width must be at least 1'):
        built(width=0)
    with pytest.raises(ValueError, match='1 student tensors, but 2'):
        ReviewKDLoss([3, 4], [3])
