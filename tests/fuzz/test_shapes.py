"""Maps of any shape: the functions and losses give finite values and gradients, or a ValueError that says the shape."""

import math

import pytest
import torch
from fuzz_helpers import OURS, PACKAGE, raised_at
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_helpers import count

from lckd_mm import functional as F
from lckd_mm import losses
from lckd_mm.functional.lipschitz import GAPS, spectral_norm

pytestmark = pytest.mark.timeout(600)

sides = st.sampled_from((0, 1, 1, 2, 3, 4, 5, 8))
batches = st.sampled_from((0, 1, 1, 2, 3))


@st.composite
def shapes(draw, ranks=(4, 4, 4, 4, 3, 2, 1)):
    rank = draw(st.sampled_from(ranks))
    return tuple(draw(batches if i == 0 else sides) for i in range(rank))


@st.composite
def tensors(draw, shape, seed=0):
    """Values of many sizes, in many layouts of memory."""
    torch.manual_seed(draw(st.integers(0, 9)) + seed)
    kind = draw(st.sampled_from(('normal', 'normal', 'zeros', 'same', 'large', 'small', 'sparse')))
    dtype = draw(st.sampled_from((torch.float32, torch.float32, torch.float64)))
    layout = draw(st.sampled_from(('plain', 'plain', 'channels last', 'strided', 'flipped')))
    scale = dict(normal=1.0, zeros=0.0, same=0.0, large=1e4, small=1e-12, sparse=1.0)[kind]
    x = torch.randn(shape, dtype=dtype) * scale
    if kind == 'same':
        x = x + 0.7
    if kind == 'sparse':
        x = x * (x > 0.5)
    if layout == 'channels last' and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    if layout == 'strided' and x.dim():
        x = torch.stack([x, x], -1)[..., 0]
    if layout == 'flipped' and x.dim() > 1:
        x = x.mT.contiguous().mT
    return x.requires_grad_()


@st.composite
def pairs(draw, ranks=(4, 4, 4, 4, 3, 2, 1)):
    """Of one shape mostly; else of other sizes, channels or ranks."""
    first = draw(shapes(ranks))
    second = first if draw(st.sampled_from((True, True, False))) else draw(shapes(ranks))
    if second is not first and draw(st.booleans()) and first and second:
        second = (first[0], *second[1:])
    return draw(tensors(first)), draw(tensors(second, seed=100))


@st.composite
def pyramids(draw, least=1):
    """A list of maps of each net, of one batch."""
    batch, levels = draw(batches), draw(st.integers(least, 3))
    made = []
    for seed in range(levels):
        shape = (batch, *(draw(sides) for _ in range(3)))
        other = shape if draw(st.sampled_from((True, True, True, False))) else (batch, *(draw(sides) for _ in range(3)))
        made.append((draw(tensors(shape, seed=seed)), draw(tensors(other, seed=50 + seed))))
    return [list(side) for side in zip(*made)]


def ends_well(function, *inputs):
    """Finite, with finite gradients, or refused by a ValueError of ours that gives a shape."""
    try:
        result = function(*inputs)
    except Exception as error:
        file, line = raised_at(error)
        told = isinstance(error, OURS) and file.startswith(PACKAGE) and line.startswith('raise')
        if told:
            return
        raise
    values = [x for x in (result if isinstance(result, (tuple, list)) else [result]) if isinstance(x, torch.Tensor)]
    for value in values:
        assert torch.isfinite(value).all(), value
    grown = [value.sum() for value in values if value.requires_grad]
    leaves = [x for part in inputs for x in (part if isinstance(part, list) else [part]) if isinstance(x, torch.Tensor)]
    leaves = [x for x in leaves if x.requires_grad]
    if grown:
        for gradient in torch.autograd.grad(sum(grown), leaves, allow_unused=True):
            assert gradient is None or torch.isfinite(gradient).all(), gradient


OF_PAIRS = dict(
    kd=lambda s, t: F.kd_divergence(s, t, 4.0),
    binary_kd=lambda s, t: F.binary_kd_divergence(s, t, 4.0),
    partial_l2=F.partial_l2,
    activation_boundary=F.activation_boundary,
    factor_cosine=F.factor_cosine,
    factor_distance=F.factor_distance,
    channel_divergence=lambda s, t: F.channel_divergence(s, t, 4.0),
    transmitting_matrix=F.transmitting_matrix,
    transmitting_norm=F.transmitting_norm,
    unit_gap=F.unit_gap,
    directional_gap=lambda s, t: F.directional_gap((s, 2 * s), (t, 2 * t), 0.1),
    decoupled_kd=lambda s, t: F.decoupled_kd(s, t, torch.zeros(s.shape[:1] + s.shape[2:]).long(), 4.0),
    attended_distance=lambda s, t: F.attended_distance(s, t, torch.ones(s.shape[:2])),
    focal_distances=lambda s, t: F.focal_distances(s, t, *torch.ones(2, *s.shape[:1], *s.shape[2:])),
    kd_loss=losses.KDLoss(),
    partial_kd_loss=losses.PartialKDLoss('topk'),
    ofd_loss=losses.OFDLoss(),
    fitnets_loss=losses.FitNetsLoss(),
    at_loss=losses.ATLoss(),
    ab_loss=losses.ABLoss(),
    ft_loss=losses.FTLoss(),
    cwd_loss=losses.CWDLoss(),
    rkd_loss=losses.RKDLoss(),
    afd_loss=lambda s, t: losses.AFDLoss([max(1, *t.shape[1:2])] if t.dim() > 1 else [1]).to(t.dtype)(s, t),
)
OF_ONE = dict(
    attention_map=F.attention_map,
    absolute_attention=F.absolute_attention,
    pairwise_distances=F.pairwise_distances,
    pairwise_angles=F.pairwise_angles,
    spectral_norm=spectral_norm,
    margin_relu=lambda x: F.margin_relu(x, -torch.ones(x.shape[1:2])),
    attended_context=lambda x: F.attended_context(x, torch.zeros(x.shape[:1] + x.shape[2:], dtype=x.dtype)),
)
OF_LISTS = dict(
    lipschitz=losses.LipschitzLoss(),
    lipschitz_absolute=losses.LipschitzLoss('absolute', normalise=True),
    fsp=losses.FSPLoss(),
    ofd=losses.OFDLoss(),
    kd=losses.KDLoss(),
    at=losses.ATLoss(),
    fitnets=losses.FitNetsLoss(),
    transmitting_norms=lambda s, t: list(F.transmitting_norms(s)),
)


def every(strategy, run):
    @settings(max_examples=count(300, 30), derandomize=True, deadline=None, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(strategy)
    def each(inputs):
        run(inputs)

    each()


def of_one_type(s, t):
    return s, t.detach().to(s.dtype).requires_grad_()


@pytest.mark.parametrize('name', OF_PAIRS)
def test_two_tensors(name):
    every(pairs(), lambda inputs: ends_well(OF_PAIRS[name], *of_one_type(*inputs)))


@pytest.mark.parametrize('name', OF_ONE)
def test_one_tensor(name):
    every(shapes().flatmap(tensors), lambda x: ends_well(OF_ONE[name], x))


@pytest.mark.parametrize('name', OF_LISTS)
def test_lists_of_maps(name):
    every(pyramids(), lambda sides: ends_well(OF_LISTS[name], *sides))


@pytest.mark.parametrize('gap', GAPS)
def test_gaps(gap):
    def run(inputs):
        ends_well(lambda s, t: F.lipschitz_gap(s.abs(), t.abs(), gap), *inputs)

    two = st.sampled_from((0, 1, 3)).flatmap(lambda n: st.tuples(tensors((n,)), tensors((n,), seed=1)))
    every(two, run)


numbers = st.floats(-5, 12, allow_nan=False, width=32)
boxes = st.lists(st.tuples(numbers, numbers, numbers, numbers), max_size=4)


def test_boxes():
    def run(case):
        corners, size = case
        box = torch.tensor(corners).reshape(-1, 4)
        box = torch.cat([torch.minimum(box[:, :2], box[:, 2:]), torch.maximum(box[:, :2], box[:, 2:])], 1)
        foreground, background = F.box_masks(box, size)
        assert foreground.shape == background.shape == size
        assert torch.isfinite(foreground).all() and (foreground >= 0).all()
        assert math.isclose(background.sum(), 1, rel_tol=1e-5) or background.sum() == 0

    every(st.tuples(boxes, st.tuples(sides, sides)), run)


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), max_size=5))
@settings(max_examples=count(300, 50), derandomize=True, deadline=None, database=None)
def test_margins_are_never_above_zero_nor_nan(channels):
    weight, bias = torch.tensor(channels, dtype=torch.float64).reshape(-1, 2).T
    margin = F.bn_margin(weight, bias)
    assert torch.isfinite(margin).all() and (margin <= 0).all()
