import math

import pytest
import torch
from torch import nn

from lckd_mm.connectors import ConvBN
from lckd_mm.distillation.build import build_term, lenders_first
from lckd_mm.distillation.term import Batch
from lckd_mm.functional import kd_divergence
from lckd_mm.losses import KDLoss, LipschitzLoss, Loss
from lckd_mm.registry import build_registered, registered_class
from lckd_mm.taps import FeatureTaps, Trace

KD = dict(type='lckd_mm.KDLoss')
LIPSCHITZ = dict(type='lckd_mm.LipschitzLoss')
CONV = dict(type='lckd_mm.ConvBN')
PART = dict(type='lckd_mm.ChannelPart')
SAME = dict(type='lckd_mm.ConvBN', in_channels=[5, 7], out_channels=[2, 4])


class Gap(nn.Module):
    """The sum of the gaps, so that what reaches a loss is seen in its value; a plain module, of pairs."""

    def forward(self, student, teacher):
        return (student - teacher).sum()


class Greedy(Loss):
    """Keeps everything that a loss may ask for."""

    joint = True

    def forward(self, student, teacher, raw_student, data_samples):
        self.seen = dict(student=student, teacher=teacher, raw_student=raw_student, data_samples=data_samples)
        return torch.zeros(())


class Pairs(Loss):
    """Keeps the pairs that it is called with, and what comes beside them."""

    def tensor_weights(self, count):
        return [10.0**i for i in range(count)]

    def forward(self, student, teacher, raw_teacher, inputs):
        self.seen = [*getattr(self, 'seen', []), (student, teacher, raw_teacher, inputs)]
        return student.mean()


class Head(nn.Module):
    """A head as a host's: it knows its classes."""

    def __init__(self):
        super().__init__()
        self.num_classes, self.cls_out_channels, self.use_sigmoid_cls = 3, 3, True
        self.cls = nn.Linear(1, 1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def taps():
    """Of both nets: a (2 against 5 channels), b (4 against 7), logits; aux fires with the loss only, untraced."""
    made = []
    for role, a, b in (('student', 2, 4), ('teacher', 5, 7)):
        made.append(FeatureTaps(dict(a='stem', b='stage', logits='head.cls', aux='aux', levels='stage#*'), role))
        shapes = dict(a=[(1, a, 8, 8)], b=[(1, b, 4, 4)], logits=[(1, 3)], levels=[(1, b, 4, 4), (1, b, 2, 2)])
        made[-1].traces = {name: Trace(len(s), s) for name, s in shapes.items()}
    return made


@pytest.fixture
def make(taps):
    def term(config, name='loss_x', student=None, others=None):
        net = student or nn.ModuleDict(dict(stem=nn.Identity(), stage=nn.Identity(), head=Head(), aux=nn.Identity()))
        return build_term(name, config, taps, net, others or {})

    return term


@pytest.fixture
def features():
    def maps(a, b):
        return dict(
            a=torch.randn(3, a, 8, 8), b=torch.randn(3, b, 4, 4), logits=torch.randn(3, 3),
            levels=[torch.randn(3, b, 4, 4), torch.randn(3, b, 2, 2)],
        )  # fmt: skip

    return maps(2, 4), maps(5, 7)


# ---- the sentence of each mistake


@pytest.mark.parametrize(
    ('config', 'error', 'says'),
    [
        (dict(loss=KD, on='logits', wieght=1), KeyError, "term 'loss_x': unknown key 'wieght', expected loss, on, "),
        (dict(on='logits'), KeyError, "term 'loss_x': no loss, expected loss=dict"),
        (dict(loss=dict(type='lckd_mm.KD'), on='a'), KeyError, r"unknown type 'lckd_mm.KD'; .*lckd_mm.KDLoss"),
        (dict(loss=dict(tau=4.0), on='logits'), ValueError, "loss: expected a dict with a type"),
        (dict(loss='lckd_mm.KDLoss', on='logits'), ValueError, "expected a dict with a type, .* got 'lckd_mm.KDLoss'"),
        (dict(loss=dict(KD, temperature=4.0), on='logits'), ValueError, r"KDLoss .*'temperature'; it takes \(tau:"),
        (dict(loss=dict(KD, tau=-4.0), on='logits'), ValueError, 'tau must be above 0, got -4.0'),
        (dict(loss=KD), ValueError, "taps of the student are None, expected on='logits' or"),
        (dict(loss=KD, student='logits'), ValueError, 'taps of the teacher are None'),
        (dict(loss=KD, on='logit'), KeyError, "unknown student tap 'logit', the taps are 'a', 'b', 'logits', 'aux', "),
        (dict(loss=KD, student='a', teacher='c'), KeyError, "unknown teacher tap 'c', the taps are 'a', 'b'"),
        (dict(loss=LIPSCHITZ, student=['a', 'b'], teacher=['a']), ValueError, '2 student taps, but 1 teacher taps'),
        (dict(loss=KD, on=[]), ValueError, r"the taps of the student are \[\], expected on='logits' or"),
        (dict(loss=KD, on=3), ValueError, "the taps of the student are 3, expected on='logits' or"),
        ('lckd_mm.KDLoss', ValueError, "expected a dict.* got 'lckd_mm.KDLoss'"),
        (dict(loss=KD, on='a', connector=dict(type='lckd_mm.MarginReLU')), ValueError, 'write it as teacher_connector'),
        (dict(loss=KD, on='a', connector=dict(type=nn.Identity)), TypeError, 'Identity does not derive from lckd_mm'),
        (dict(loss=KD, on='a', connector=[PART, dict(type=nn.Identity)]), TypeError, 'Identity does not derive'),
        (dict(loss=KD, on='a', connector=[]), ValueError, 'connector is an empty list'),
        (dict(loss=KD, on='a', connector=dict(CONV, width=3)), ValueError, r"ConvBN .*'width'; it takes \(in_channels"),
        (dict(loss=LIPSCHITZ, on=['a', 'b'], connector=dict(CONV, out_channels=[3])), ValueError,
         'connector has 1 out_channels, but there are 2 taps'),
    ],
)  # fmt: skip
def test_mistakes(make, config, error, says):
    with pytest.raises(error, match=says):
        make(config)


@pytest.mark.parametrize('weight', [-0.1, math.nan, math.inf, '1', None, [1.0]])
def test_a_bad_weight_raises(make, weight):
    with pytest.raises(ValueError, match=r"term 'loss_x': weight must be (a finite number|at least 0|a number, or)"):
        make(dict(loss=KD, on='logits', weight=weight))


# ---- types


@pytest.mark.parametrize('kind', ['lckd_mm.KDLoss', 'KDLoss', KDLoss])
def test_a_type_with_and_without_its_scope_and_as_a_class(make, kind):
    term = make(dict(loss=dict(type=kind, tau=2.0), on='logits'))
    assert type(term.loss) is KDLoss
    assert term.loss.tau == 2.0
    assert registered_class(dict(type=kind), 'x') is KDLoss


def test_a_types_own_scope_reaches_a_host(scope):
    scope('mmseg')
    loss = build_registered(dict(type='mmseg.CrossEntropyLoss', loss_weight=2.0), 'x')
    assert type(loss).__module__.startswith('mmseg')
    assert loss.loss_weight == 2.0
    assert type(build_registered(LIPSCHITZ, 'x')) is LipschitzLoss


@pytest.mark.parametrize(
    ('kind', 'named'),
    [
        ('lckd_mm.KDLsos', 'KDLoss'),
        ('ConvBNorm', 'ConvBN'),
        (['lckd_mm.OFDLoss'], 'OFDLoss'),
        ('x', 'ConvBN'),
    ],
)
def test_an_unknown_type_gets_the_closest_names(kind, named):
    with pytest.raises(KeyError, match=r"term: unknown type .*such as 'lckd_mm\.") as raised:
        registered_class(dict(type=kind), 'term')
    assert f"'lckd_mm.{named}'" in str(raised.value) and len(str(raised.value)) < 250


# ---- selecting and weighing


def test_a_joint_loss_gets_the_tensors_of_all_taps_in_one_list(make, features):
    s, t = features
    one = make(dict(loss=dict(type=Greedy), on='logits'))
    one(Batch(s, t, data_samples=['sample']), {})
    assert one.loss.seen['student'][0] is s['logits']
    assert one.loss.seen['data_samples'] == ['sample']
    several = make(dict(loss=dict(type=Greedy), student=['a', 'levels'], teacher=['b', 'levels']))
    several(Batch(s, t), {})
    for key, expected in (
        ('student', [s['a'], *s['levels']]),
        ('teacher', [t['b'], *t['levels']]),
        ('raw_student', [s['a'], *s['levels']]),
    ):
        assert [x is y for x, y in zip(several.loss.seen[key], expected, strict=True)] == [True] * 3


def test_a_loss_of_pairs_is_called_for_each_tensor_and_summed_with_its_weights(make, features):
    s, t = features
    term = make(dict(loss=dict(type=Pairs), on=['a', 'levels'], connector=CONV)).eval()
    value = term(Batch(s, t, inputs='images'), {})
    assert [seen[0].shape[1:] for seen in term.loss.seen] == [(5, 8, 8), (7, 4, 4), (7, 2, 2)]
    assert [seen[2] is x for seen, x in zip(term.loss.seen, [t['a'], *t['levels']], strict=True)] == [True] * 3
    assert [seen[3] for seen in term.loss.seen] == ['images'] * 3
    expected = sum(w * seen[0].mean() for w, seen in zip((1, 10, 100), term.loss.seen))
    torch.testing.assert_close(value, expected)
    plain = make(dict(loss=dict(type=Gap), student=['a', 'a'], teacher=['a', 'a'], connector=CONV)).eval()
    gaps = [(c(s['a']) - t['a']).sum() for c in plain.connectors]
    torch.testing.assert_close(plain(Batch(s, t), {}), sum(gaps) / 2)  # by default the mean


class Targets(nn.Module):
    def forward(self, inputs, targets):
        return (inputs - targets).square().mean()


def test_a_plain_loss_may_call_the_features_what_it_likes(make, features):
    s, t = (side['logits'] for side in features)
    value = make(dict(loss=dict(type=Targets), on='logits'))(Batch(*features, inputs='images'), {})
    torch.testing.assert_close(value, (s - t).square().mean())


def test_nets_that_give_different_numbers_of_tensors_raise(make, features):
    with pytest.raises(ValueError, match='2 student tensors, but 1'):
        make(dict(loss=dict(type=Gap), student='levels', teacher='b'))(Batch(*features), {})


@pytest.mark.parametrize(('weight', 'scale'), [(1, 1.0), (0.5, 1.0), (0.5, 3.0), (0, 1.0), (2.0, 0.0)])
def test_weight_and_scale_multiply(make, features, weight, scale):
    term = make(dict(loss=dict(KD, tau=2.0, activation='softmax'), on='logits', weight=weight))
    term.scale = scale
    s, t = features[0]['logits'].requires_grad_(), features[1]['logits']
    value = term(Batch(dict(logits=s), dict(logits=t)), {})
    torch.testing.assert_close(value, weight * scale * kd_divergence(s, t, 2.0).mean())
    # A weight of 0 multiplies: the graph is there, for DDP.
    value.backward()
    assert (s.grad.abs().max() == 0) == (weight * scale == 0)


def test_the_default_weight_is_one_and_a_nets_own_taps_override_on(make, features):
    term = make(dict(loss=dict(type=Gap), on='a', student='logits', teacher='logits'))
    s, t = features[0]['logits'], features[1]['logits']
    torch.testing.assert_close(term(Batch(*features), {}), (s - t).sum())


def test_adapt_sees_the_head_that_owns_the_students_tap(make):
    term = make(dict(loss=KD, on='logits'))
    assert (term.loss.activation, term.loss.scores) == ('sigmoid', 3)
    assert make(dict(loss=KD, on='a')).loss.activation == 'softmax'


# ---- precision


@pytest.mark.parametrize(
    ('dtype', 'expected'),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
)
def test_features_are_at_least_float32(make, dtype, expected):
    term = make(dict(loss=dict(type=Greedy), on=['levels', 'a']))
    a, levels = torch.randn(1, 2, 8, 8).to(dtype), [torch.randn(1, 4, 4, 4).to(dtype)]
    term(Batch(*[dict(a=a, levels=levels)] * 2), {})
    for side in ('student', 'teacher', 'raw_student'):
        assert [x.dtype for x in term.loss.seen[side]] == [expected] * 2


def test_autocast_is_off_inside(make, features):
    term = make(dict(loss=LIPSCHITZ, on=['a', 'b'], connector=CONV))
    plain = term(Batch(*features), {})
    with torch.autocast('cpu', torch.bfloat16):
        cast = term(Batch(*features), {})
    assert cast.dtype == torch.float32
    assert torch.equal(cast, plain)


# ---- connectors


def test_connector_channels_come_from_the_dry_run(make, features):
    term = make(dict(loss=LIPSCHITZ, on=['a', 'b'], connector=CONV))
    assert [type(c) for c in term.connectors] == [ConvBN, ConvBN]
    assert [tuple(c[0].weight.shape) for c in term.connectors] == [(5, 2, 1, 1), (7, 4, 1, 1)]
    done = {}
    term.eval()
    value = term(Batch(*features), done)
    connected = [c(features[0][n]) for c, n in zip(term.connectors, 'ab', strict=True)]
    torch.testing.assert_close(value, LipschitzLoss()(connected, [features[1]['a'], features[1]['b']]))
    ((connected_features, _),) = done.values()
    assert list(connected_features) == ['a', 'b']
    assert torch.equal(connected_features['b'], connected[1])


def test_connector_channels_may_be_typed(make):
    for channels in ([3, 9], 6):
        term = make(dict(loss=LIPSCHITZ, on=['a', 'b'], connector=dict(CONV, out_channels=channels)))
        widths = channels if isinstance(channels, list) else [channels] * 2
        assert [c[0].out_channels for c in term.connectors] == widths
        assert [c[0].in_channels for c in term.connectors] == [2, 4]


def test_teacher_connector_goes_from_the_teacher_to_the_student(make, features):
    term = make(dict(loss=dict(type=Gap), on='a', teacher_connector=CONV)).eval()
    assert tuple(term.teacher_connectors[0][0].weight.shape) == (2, 5, 1, 1)
    s, t = features
    torch.testing.assert_close(term(Batch(s, t), {}), (s['a'] - term.teacher_connectors[0](t['a'])).sum())
    term = make(dict(loss=dict(type=Gap), student='a', teacher='b', teacher_connector=CONV))
    assert tuple(term.teacher_connectors[0][0].weight.shape) == (2, 7, 1, 1)


def test_connectors_see_the_other_side(make, features):
    term = make(dict(loss=dict(type=Greedy), student='a', teacher='b', connector=dict(type='lckd_mm.MatchSize')))
    term(Batch(*features), {})
    assert term.loss.seen['student'][0].shape == (3, 2, 4, 4)
    assert term.loss.seen['raw_student'][0] is features[0]['a']


def test_one_connector_serves_all_levels_of_a_list(make, features):
    term = make(dict(loss=dict(type=Greedy), on='levels', connector=CONV)).eval()
    assert len(term.connectors) == 1
    term(Batch(*features), {})
    assert [tuple(x.shape) for x in term.loss.seen['student']] == [(3, 7, 4, 4), (3, 7, 2, 2)]


def test_an_untraced_tap_needs_typed_channels(make):
    says = r"student tap 'aux' .* lies behind an operator.*connector=dict\(type=…, in_channels=\[…\]\)"
    with pytest.raises(ValueError, match=says):
        make(dict(loss=dict(type=Gap), student='aux', teacher='a', connector=CONV))
    term = make(dict(loss=dict(type=Gap), student='aux', teacher='a', connector=dict(CONV, in_channels=6)))
    assert tuple(term.connectors[0][0].weight.shape) == (5, 6, 1, 1)


def test_connectors_are_trained_and_stored(make, features):
    term = make(dict(loss=LIPSCHITZ, on=['a', 'b'], connector=CONV))
    term(Batch(*features), {}).backward()
    assert all(p.grad.abs().max() > 0 for c in term.connectors for p in [c[0].weight])
    assert {k.split('.')[0] for k in term.state_dict()} == {'connectors'}


# ---- shared connectors


def test_a_shared_connector_is_the_other_terms_own_feature(make, features):
    first = make(dict(loss=dict(type=Gap), on=['a', 'b'], connector=CONV), 'loss_first')
    second = make(
        dict(loss=dict(type=Greedy), on=['b'], connector='loss_first'), 'loss_second', others={'loss_first': first}
    )
    assert second.student.lender == 'loss_first'
    assert not list(second.parameters())
    done = {}
    first(Batch(*features), done)
    second(Batch(*features), done)
    assert second.loss.seen['student'][0] is done[first.name][0]['b']
    assert second.loss.seen['raw_student'][0] is features[0]['b']
    both = {'loss_first': first, 'loss_second': second}
    third = make(dict(loss=dict(type=Greedy), on=['b'], connector='loss_second'), others=both)
    assert third.student.lender == 'loss_first'


@pytest.mark.parametrize(
    ('config', 'error', 'says'),
    [
        (dict(on='a', connector='loss_late'), KeyError, "connector: no term 'loss_late' .*'loss_first'"),
        (dict(on='b', connector='loss_first'), ValueError, "'loss_first' .* student tap 'b' to teacher tap 'b'"),
        (dict(on='a', connector='loss_bare'), ValueError, "'loss_bare' has no connector"),
        (dict(on='a', teacher_connector='loss_first'), ValueError, "'loss_first' has no teacher_connector"),
    ],
)
def test_sharing_what_is_not_there_raises(make, config, error, says):
    gap = dict(type=Gap)
    others = dict(
        loss_first=make(dict(loss=gap, on=['a'], connector=CONV), 'loss_first'),
        loss_bare=make(dict(loss=gap, on=['a']), 'loss_bare'),
    )
    with pytest.raises(error, match=says):
        make(dict(loss=gap, **config), others=others)


def test_a_shared_teacher_connector_is_the_other_terms_own_feature_without_gradient(make, features):
    first = make(dict(loss=dict(type=Gap), on=['a', 'b'], teacher_connector=SAME), 'loss_first')
    second = make(
        dict(loss=dict(type=Greedy), on=['b'], teacher_connector='loss_first'), 'loss_second',
        others={'loss_first': first},
    )  # fmt: skip
    assert second.teacher.lender == 'loss_first'
    assert not list(second.parameters())
    done = {}
    first(Batch(*features), done)
    second(Batch(*features), done)
    assert done['loss_first'][1]['b'].requires_grad
    got = second.loss.seen['teacher'][0]
    assert got.data_ptr() == done['loss_first'][1]['b'].data_ptr() and not got.requires_grad


def test_terms_are_built_after_those_whose_connectors_they_share():
    terms = dict(
        loss_a=dict(connector='loss_c'), loss_b=dict(teacher_connector='loss_d'), loss_c=dict(connector='loss_d'),
        loss_d={}, loss_e={},
    )  # fmt: skip
    assert list(lenders_first(terms)) == ['loss_d', 'loss_c', 'loss_a', 'loss_b', 'loss_e']
    plain = dict(loss_b={}, loss_a=dict(connector='loss_b'), loss_0={})
    assert list(lenders_first(plain)) == list(plain)
    # A ring, and what is no term, are refused when the terms are built.
    ring = dict(loss_a=dict(connector='loss_b'), loss_b=dict(connector='loss_a'), loss_c=dict(connector='loss_x'))
    assert set(lenders_first(ring)) == set(ring)


def test_a_loss_around_another_gets_what_that_one_asks_for(make, features):
    inner = dict(type='lckd_mm.AFDLoss')
    term = make(
        dict(loss=dict(type='lckd_mm.ExploreLoss', loss=inner, form='hinge', bound=9.0), on='b', connector=CONV)
    )
    assert term.loss.wrapped.attentions[0][0].in_features == 7  # the teacher's channels
    kd = make(dict(loss=dict(type='lckd_mm.ExploreLoss', loss=KD, form='saturating', bound=9.0), on='logits'))
    assert (kd.loss.wrapped.activation, kd.extras) == ('sigmoid', ['data_samples'])
    noise = dict(type='lckd_mm.JacobianLoss', mode='noise')
    assert make(dict(loss=dict(type='lckd_mm.ExploreLoss', loss=noise, form='hinge', bound=1.0), on='logits')).replays


def test_a_loss_with_layers_of_its_own_gets_both_nets_channels_and_no_connector(make, features):
    term = make(dict(loss=dict(type='lckd_mm.VIDLoss'), student=['a', 'b'], teacher=['b', 'a']))
    widths = [net[0].in_channels for net in term.loss.means], [len(scale) for scale in term.loss.scales]
    assert widths == ([x.shape[1] for x in (features[0]['a'], features[0]['b'])],
                      [x.shape[1] for x in (features[1]['b'], features[1]['a'])])  # fmt: skip
    assert term(Batch(*features), {}).isfinite()
    with pytest.raises(ValueError, match=r'VIDLoss: built for .*; leave out the connector'):
        make(dict(loss=dict(type='lckd_mm.VIDLoss'), on='b', connector=CONV))(Batch(*features), {})


def test_an_auto_encoder_that_is_trained_along_needs_its_own_loss(make, features):
    online = dict(type='lckd_mm.AutoEncoder', online=True)
    with pytest.raises(ValueError, match=r"trained by a term of its own, with loss=dict.type='lckd_mm.Reconstruction"):
        make(dict(loss=dict(type='lckd_mm.FTLoss'), on='b', connector=CONV, teacher_connector=online))
    term = make(dict(loss=dict(type='lckd_mm.ReconstructionLoss'), on='b', teacher_connector=online))
    teacher = {name: x if name == 'levels' else x.requires_grad_() for name, x in features[1].items()}
    term.train()
    term(Batch(features[0], teacher), {}).backward()
    assert teacher['b'].grad is None
    assert all(p.grad is not None for p in term.teacher_connectors.parameters())
    with pytest.raises(ValueError, match='ReconstructionLoss: trains auto-encoders'):
        make(dict(loss=dict(type='lckd_mm.ReconstructionLoss'), on='b'))(Batch(*features), {})
