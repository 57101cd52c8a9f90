import re

import pytest
import torch
from run_helpers import hooks_in
from torch import nn
from torch.utils.checkpoint import checkpoint

from lckd_mm.hosts import build_model, run_once
from lckd_mm.taps import Address, FeatureTaps


class Block(nn.Module):
    """conv, bn, relu, conv, bn, += x, the same relu: a residual block as the hosts write it."""

    def __init__(self, inplace=True):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace)

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x
        return self.relu(out)


class Net(nn.Module):
    """Two blocks, modules that give a tuple, a list in a tuple and a dict, one that never runs, and a head."""

    def __init__(self, inplace=True):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.layer1, self.layer2 = nn.Sequential(Block(inplace)), nn.Sequential(Block(inplace), Block(inplace))
        self.split, self.nest, self.pack = Split(), nn.Identity(), Pack()
        self.head = nn.Linear(4, 2)
        self.unused = nn.Linear(1, 1)

    def forward(self, x):
        x = self.layer2(self.layer1(self.stem(x)))
        first, second = self.split((x, 2 * x))
        first, (_, second) = self.nest((first, [2 * second, second + 1]))
        return self.head(self.pack(x=first + second)['mean'])


class Split(nn.Module):
    def forward(self, pair):
        return pair[0], pair[1] + 1


class Pack(nn.Module):
    def forward(self, x):
        return {'mean': x.mean((2, 3))}


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.stem, self.block, self.reentrant = nn.Conv2d(3, 4, 1), Block(), reentrant

    def forward(self, x):
        x = self.stem(x)
        return self.block(x) if self.reentrant is None else checkpoint(self.block, x, use_reentrant=self.reentrant)


class Preactivated(nn.Module):
    """BN, ReLU, conv, += x: a stage that ends in an addition."""

    def __init__(self):
        super().__init__()
        self.bn, self.relu, self.conv = nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return x + self.conv(self.relu(self.bn(x)))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def net():
    return Net()


@pytest.fixture
def image():
    return torch.randn(2, 3, 8, 8)


def traced(model, image, **addresses):
    taps = FeatureTaps(addresses)
    with torch.no_grad():
        taps.trace(model, lambda: model(image))
    return taps


def record(model, image, require_grad=False, **addresses):
    taps = FeatureTaps(addresses)
    with taps.record(model, require_grad=require_grad) as features:
        model(image)
    assert not hooks_in(model)
    return features


# ---- addresses


@pytest.mark.parametrize(
    ('text', 'address'),
    [
        ('head', Address('head')),
        ('backbone.layer2.1.relu@in#-1', Address('backbone.layer2.1.relu', port='in', call=-1)),
        ('neck[0]', Address('neck', items=(0,))),
        ('neck[-1]@in#2', Address('neck', items=(-1,), port='in', call=2)),
        ('bbox_head.retina_cls#*', Address('bbox_head.retina_cls', call='*')),
        ('backbone.layer2@preact', Address('backbone.layer2', port='preact')),
        ('a.0.b_1[12]@in#*', Address('a.0.b_1', items=(12,), port='in', call='*')),
        ('a.b[1][-2]#0', Address('a.b', items=(1, -2), call=0)),
    ],
)
def test_addresses(text, address):
    assert Address.parse(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    'text',
    [
        '', '.', 'a.', '.a', 'a..b', 'a b', 'a[', 'a[]', 'a[x]', 'a[1.5]', 'a@', 'a@out', 'a#', 'a#x', 'a#1#2',
        'a#1@in', 'a@in[0]', 'a#*[0]', 'a\n', ' a', 'a@preact#1', 'a@preact#*', 'a[0]@preact', 'a-b', None, 3, ['a'],
        'a[0][', 'a[0][]', 'a[0]b[1]', 'a[0][1]@preact',
    ],
)  # fmt: skip
def test_malformed_addresses_raise_and_are_named(text):
    with pytest.raises(ValueError, match=re.escape(f'tap address {text!r} is malformed')):
        Address.parse(text)


# ---- reading


def test_output_and_input(net, image):
    features = record(net, image, out='stem', inside='layer1.0.conv1@in', head='head@in')
    assert torch.equal(features['out'], net.stem(image))
    assert features['inside'] is features['out']
    assert features['head'].shape == (2, 4)


def test_items_of_tuples_in_and_out(net, image):
    f = record(net, image, a='split[0]', b='split[1]', last='split[-1]', into='split[1]@in', layer='layer2')
    assert torch.equal(f['b'], 2 * f['a'] + 1)
    assert f['last'] is f['b']
    assert torch.equal(f['into'], 2 * f['layer'])


def test_items_of_lists_in_tuples(net, image):
    f = record(net, image, b='split[1]', first='nest[1][0]', last='nest[-1][-1]', into='nest[1][0]@in')
    assert torch.equal(f['first'], 2 * f['b']) and torch.equal(f['last'], f['b'] + 1)
    assert f['into'] is f['first']


def test_input_given_by_keyword(net, image):
    f = record(net, image, by_key='pack@in', a='split[0]', b='nest[1][1]')
    assert torch.equal(f['by_key'], f['a'] + f['b'])


def test_calls(image):
    net = Net(inplace=False)
    f = record(
        net, image, first='layer2.0.relu#0', second='layer2.0.relu#1', last='layer2.0.relu#-1',
        before='layer2.0.relu#-2', all='layer2.0.relu#*', ins='layer2.0.relu@in#*', block='layer2.0',
    )  # fmt: skip
    assert f['before'] is f['first'] is f['all'][0]
    assert f['last'] is f['second'] is f['all'][1] is f['block']
    assert [torch.equal(x.relu(), y) for x, y in zip(f['ins'], f['all'], strict=True)] == [True, True]
    assert not torch.equal(f['first'], f['second'])


def test_only_the_features_asked_for_are_read(net, image):
    taps = FeatureTaps(dict(a='stem', b='unused'))
    with taps.record(net, ['a']) as features:
        net(image)
    assert list(features) == ['a']


def test_several_forwards_in_one_recording_count_as_calls(net, image):
    taps = FeatureTaps(dict(both='stem#*', last='stem#-1'))
    with taps.record(net) as f:
        net(image)
        net(2 * image)
    torch.testing.assert_close(f['both'][1], net.stem(2 * image))
    assert f['last'] is f['both'][1]


# ---- what is refused


@pytest.mark.parametrize(
    ('address', 'says'),
    [
        ('layer1.0.relu', r'2 times; .*layer1.0.relu#-1 .* #\*'),
        ('layer1.0.relu@in', r'2 times; .*layer1.0.relu@in#-1'),
        ('layer1.0.relu@in#2', '2 times, .*#2'),
        ('layer1.0.relu@in#-3', '2 times, .*#-3'),
        ('unused', 'never fired'),
        ('unused#*', 'never fired'),
        ('split', r'tuple of 2; .*split\[0\]'),
        ('split@in', 'tuple of 2'),
        ('split[2]', r'tuple of 2, .*\[2\]'),
        ('split[-3]', r'tuple of 2, .*\[-3\]'),
        ('nest', r'a tuple of 2; pick one with \[k\], as in nest\[0\]'),
        ('nest[1]', r'a tuple of 2; pick one with \[k\], as in nest\[1\]\[0\]'),
        ('nest[1][2]', r'nest\[1\] gives a tuple of 2, which has no \[2\]'),
        ('nest[0][1]', r'nest\[0\] gives a Tensor, not a tuple; write it without \[1\]'),
        ('stem[0]', r'Tensor.*\[0\]'),
        ('pack', 'dict'),
        ('layer1.0.bn1', 'overwritten in place'),
        ('layer2.1.bn2', 'overwritten in place'),
    ],
)
def test_refused_when_read(net, image, address, says):
    taps = FeatureTaps(dict(tap=address), role='teacher')
    with pytest.raises(ValueError, match=f"^teacher tap 'tap': .*{says}"), taps.record(net):
        net(image)
    assert not hooks_in(net)
    assert all(m.inplace for m in net.modules() if isinstance(m, nn.ReLU))


def test_a_missing_module_names_the_closest(net, image):
    taps = FeatureTaps(dict(stage='layer2.1.conv3'))
    says = r"student tap 'stage': no module 'layer2.1.conv3' in Net; closest: 'layer2.1.conv[12]', .*list_taps"
    with pytest.raises(KeyError, match=says):
        taps.trace(net, lambda: net(image))


def test_frozen_is_refused_where_gradient_is_required(net, image):
    net.stem.requires_grad_(False)
    net.layer1.requires_grad_(False)
    assert not record(net, image, tap='layer1')['tap'].requires_grad
    assert record(net, image, require_grad=True, tap='layer2')['tap'].requires_grad
    with pytest.raises(ValueError, match='no gradient'):
        record(net, image, require_grad=True, tap='layer1')
    assert not hooks_in(net)


def test_reentrant_checkpointing_is_refused(image):
    model = Checkpointed(reentrant=True)
    with pytest.raises(ValueError, match=r'no gradient.*use_reentrant=False'):
        record(model, image, require_grad=True, tap='block.conv1')
    assert record(model, image, require_grad=True, tap='block')['tap'].requires_grad


def test_plain_checkpointing_gives_the_same_gradient(image):
    gradients = []
    for reentrant in (None, False):
        torch.manual_seed(1)
        model = Checkpointed(reentrant)
        f = record(model, image, require_grad=True, a='block.relu@in#-1', b='block.conv2')
        (f['a'].square().mean() + f['b'].sin().mean()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    plain, checkpointed = gradients
    for name in ('stem.weight', 'block.conv1.weight', 'block.bn1.bias', 'block.bn2.weight'):
        torch.testing.assert_close(checkpointed[name], plain[name], msg=name)
        assert plain[name].abs().max() > 0


# ---- in-place activations


def test_input_of_an_inplace_activation_is_readable_and_the_switch_comes_back(net, image):
    f = record(net, image, pre='layer2.1.relu@in#-1', out='layer2')
    assert (f['pre'] < 0).any()
    assert torch.equal(f['pre'].relu(), f['out'])
    assert all(m.inplace for m in net.modules() if isinstance(m, nn.ReLU))


def test_recording_leaves_the_networks_output_and_gradient(image):
    results = []
    for tapped in (False, True):
        torch.manual_seed(1)
        net = Net()
        taps = FeatureTaps(dict(pre='layer2.1.relu@in#-1') if tapped else {})
        with taps.record(net):
            out = net(image)
        out.square().sum().backward()
        results.append([out, *(p.grad for p in net.parameters() if p.grad is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize('how', ['record', 'trace', 'trace@preact'])
def test_nothing_is_left_after_an_exception(net, image, how):
    address = 'layer2@preact' if how == 'trace@preact' else 'layer2.1.relu@in#-1'
    taps = FeatureTaps(dict(tap=address, out='split[0]', silent='unused'))

    def fail():
        net(image)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        if how == 'record':
            with taps.record(net):
                fail()
        else:
            taps.trace(net, fail)
    assert not hooks_in(net)
    assert all(m.inplace for m in net.modules() if isinstance(m, nn.ReLU))
    assert set(taps.traces) == (set() if how == 'record' else {'tap', 'out'})


def test_a_run_may_fail_behind_the_last_tap(net, image):
    taps = FeatureTaps(dict(tap='layer2@preact', out='split[0]'))

    def fail():
        net(image)
        raise ZeroDivisionError

    assert taps.trace(net, fail) == set()
    whole = FeatureTaps(dict(tap='layer2@preact', out='split[0]'))
    whole.trace(net, lambda: net(image))
    assert taps.traces == whole.traces and taps.resolved == whole.resolved


def test_other_peoples_hooks_stay(net, image):
    seen = []
    handle = net.stem.register_forward_hook(lambda *_: seen.append(1))
    with FeatureTaps(dict(tap='stem')).record(net):
        net(image)
    net(image)
    assert seen == [1, 1]
    handle.remove()
    assert not hooks_in(net)


# ---- trace


def test_trace_notes_calls_and_shapes_and_gives_the_silent(net, image):
    taps = FeatureTaps(dict(stem='stem', relu='layer1.0.relu@in#*', last='layer2.1.relu@in#-1', never='unused'))
    with torch.no_grad():
        assert taps.trace(net, lambda: net(image)) == {'never'}
    assert {n: t.calls for n, t in taps.traces.items()} == dict(stem=1, relu=2, last=2)
    assert taps.traces['stem'].shapes == [(2, 4, 8, 8)]
    assert taps.traces['relu'].shapes == [(2, 4, 8, 8)] * 2
    assert taps.traces['last'].shapes == [(2, 4, 8, 8)]
    # A second run asks for what is missing only.
    assert taps.trace(net, lambda: net.unused(torch.zeros(3, 1))) == set()
    assert taps.traces['never'].shapes == [(3, 1)]
    assert taps.traces['stem'].calls == 1


@pytest.mark.parametrize('depth', [18, 50])
def test_preact_is_what_the_last_activation_reads(scope, tiny_fcn, depth):
    scope('mmseg')
    model = build_model(tiny_fcn(depth=depth))
    stages = {f'stage{i}': f'backbone.layer{i}' for i in range(1, 5)}
    taps = FeatureTaps({n: f'{path}@preact' for n, path in stages.items()} | {f'{n}_out': p for n, p in stages.items()})
    assert taps.trace(model, lambda: run_once(model, (32, 32), 'tensor')) == set()
    blocks = {18: (1, 1, 1, 1), 50: (2, 3, 5, 2)}[depth]
    assert [str(taps.resolved[n]) for n in stages] == [
        f'backbone.layer{i}.{block}.relu@in#-1' for i, block in enumerate(blocks, 1)
    ]
    with taps.record(model, require_grad=True) as f:
        model(torch.randn(2, 3, 32, 32))
    assert not hooks_in(model)
    for name in stages:
        assert (f[name] < 0).any()
        assert torch.equal(f[name].relu(), f[f'{name}_out'])


def test_preact_of_an_activation_that_runs_once(image):
    stage = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.LeakyReLU(0.1, inplace=True))
    model = nn.Sequential(stage)
    taps = traced(model, image, pre='0@preact', out='0')
    assert str(taps.resolved['pre']) == '0.2@in'
    with taps.record(model) as f:
        model(image)
    assert torch.equal(nn.functional.leaky_relu(f['pre'], 0.1), f['out'])


def test_preact_of_a_stage_whose_activation_runs_again_later(image):
    relu = nn.ReLU()
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), relu), nn.Sequential(nn.Conv2d(4, 4, 1), relu))
    taps = traced(model, image, a='0@preact', b='1@preact', a_out='0', b_out='1')
    with taps.record(model) as f:
        model(image)
    assert torch.equal(f['a'].relu(), f['a_out'])
    assert torch.equal(f['b'].relu(), f['b_out'])
    assert not torch.equal(f['a'], f['b'])


def test_preact_of_a_preactivation_net_raises_with_the_alternatives(image):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Preactivated(), Preactivated())
    says = r"'1' does not end in an activation, .* '1' \(its output\), '1.bn' \(its last .* '2.bn' \(the next norm"
    with pytest.raises(ValueError, match=says):
        traced(model, image, stage='1@preact')
    assert not hooks_in(model)


def test_preact_of_a_linear_bottleneck_raises_with_the_alternatives(scope):
    scope('mmpretrain')
    model, image = build_model(dict(type='MobileNetV2', widen_factor=0.25)), torch.randn(1, 3, 32, 32)
    model.eval()
    says = r"'layer3' does not end in an activation.*'layer3.2.conv.2.bn' \(its last norm.*'layer4.0.conv.0.bn'"
    with pytest.raises(ValueError, match=says):
        traced(model, image, stage='layer3@preact')
    # It does end in an activation where the stage is the last convolution.
    with torch.no_grad(), traced(model, image, last='conv2@preact', out='conv2').record(model) as f:
        model(image)
    assert torch.equal(f['last'].clamp(0, 6), f['out'])


def test_preact_must_be_traced_before_it_is_read(net, image):
    taps = FeatureTaps(dict(stage='layer2@preact'))
    with pytest.raises(ValueError, match='@preact must be resolved by trace'), taps.record(net):
        net(image)
    assert not hooks_in(net)


def test_preact_of_a_module_that_never_runs_is_silent(net, image):
    taps = FeatureTaps(dict(stage='unused@preact'))
    assert taps.trace(net, lambda: net(image)) == {'stage'}


# ---- stopping early


@pytest.mark.parametrize(
    ('addresses', 'ran'),
    [
        (dict(a='stem', b='layer1.0.relu@in#-1'), []),
        (dict(a='layer2.0.relu@in#0'), []),
        (dict(a='layer2.0.relu@in#1'), ['layer2.0.conv2']),
        (dict(a='layer2.1.relu@in#*', b='stem'), ['layer2.0.conv2', 'layer2.1.conv2']),
        (dict(a='layer2@preact'), ['layer2.0.conv2', 'layer2.1.conv2']),
        (dict(a='split[1]'), ['layer2.0.conv2', 'layer2.1.conv2', 'split']),
    ],
)
def test_stop_leaves_the_forward_after_the_last_tap(net, image, addresses, ran):
    net.eval()
    taps, calls = traced(net, image, **addresses), []

    def note(name):
        return net.get_submodule(name).register_forward_hook(lambda *_: calls.append(name))

    with torch.no_grad():
        with taps.record(net) as whole:
            net(image)
        handles = [note(name) for name in ('layer2.0.conv2', 'layer2.1.conv2', 'split', 'head')]
        with taps.record(net, stop=True) as stopped:
            net(image)
            raise AssertionError('the forward was not left')
    for handle in handles:
        handle.remove()
    assert calls == ran
    assert not hooks_in(net)
    for name, value in whole.items():
        for a, b in zip(*(v if isinstance(v, list) else [v] for v in (value, stopped[name])), strict=True):
            assert torch.equal(a, b)


def test_stop_waits_for_the_taps_asked_for_and_for_all_without_a_trace(net, image):
    taps, later = traced(net, image, a='stem', b='split[0]'), []
    with torch.no_grad():
        handle = net.layer1.register_forward_hook(lambda *_: later.append(1))
        with taps.record(net, ['a'], stop=True) as features:
            net(image)
        assert list(features) == ['a'] and later == []
        with FeatureTaps(dict(a='stem')).record(net, stop=True):
            net(image)
            handle.remove()
    assert later == [1] and not hooks_in(net)


def test_taps_hold_no_modules(net, image):
    taps = traced(net, image, stage='layer2@preact')
    net.layer2[1].relu = nn.ReLU()  # as hosts do when they convert modules
    with taps.record(net) as f:
        net(image)
    assert (f['stage'] < 0).any()


# ---- the normalisation layer that a tap reads


def test_the_norm_of_a_tap_is_the_one_whose_output_it_reads(scope, tiny_classifier):
    scope('mmpretrain')
    model = build_model(tiny_classifier(), 'mmpretrain')
    taps = FeatureTaps(
        dict(
            stage='backbone.layer2@preact',
            projected='backbone.layer2.0.relu@in#-1',
            itself='backbone.layer3.0.downsample.1',
            convolution='backbone.layer3.1.conv2',
            activated='backbone.layer3',
            pooled='neck[0]',
        )
    )
    taps.trace(model, lambda: run_once(model, (32, 32), 'tensor'))
    found = {name: trace.norm for name, trace in taps.traces.items()}
    assert found == dict(
        stage='backbone.layer2.1.bn2',
        projected='backbone.layer2.0.bn2',  # and not its projection's, which runs later
        itself='backbone.layer3.0.downsample.1',
        convolution=None,
        activated=None,
        pooled=None,
    )


# ---- substitute


@pytest.mark.parametrize(
    'address',
    [
        'layer1', 'layer1@preact', 'layer2.0.conv1@in', 'layer2.0.relu@in#0', 'layer2.0.relu#-1', 'split[0]', 'pack@in',
        'nest[0]', 'nest[1][1]', 'nest[1][1]@in',
    ],
)  # fmt: skip
def test_what_is_put_in_a_tap_s_place_is_what_the_rest_follows_from(net, image, address):
    taps = traced(net.eval(), image, a=address, end='head')
    with torch.no_grad():
        with taps.record(net) as plain:
            net(image)
        with taps.record(net, ['end']) as same, taps.substitute(net, 'a', plain['a'].clone()):
            net(image)
        with taps.record(net, ['end']) as moved, taps.substitute(net, 'a', plain['a'].flip(0)):
            net(image)
        with taps.record(net, ['end']) as after:
            net(image)
    torch.testing.assert_close(same['end'], plain['end'])
    assert not torch.allclose(moved['end'], plain['end'])
    assert torch.equal(after['end'], plain['end'])
    assert not hooks_in(net)
    assert all(m.inplace for m in net.modules() if isinstance(m, nn.ReLU))


def test_each_call_of_a_tap_of_all_calls_gets_its_own_tensor(net, image):
    taps = traced(net.eval(), image, a='layer2.0.relu@in#*', end='head')
    with torch.no_grad():
        with taps.record(net) as plain:
            net(image)
        with taps.substitute(net, 'a', [2 * x for x in plain['a']]), taps.record(net) as moved:
            net(image)
    assert len(plain['a']) > 1
    torch.testing.assert_close(moved['a'], [2 * x for x in plain['a']])
    assert not torch.allclose(moved['end'], plain['end'])


def test_nothing_is_put_where_there_is_no_place_for_it(image):
    net = Net(inplace=False)
    for taps, value, says in (
        (traced(net, image, a='layer2.0.relu#*'), image, 'give a list for #'),
        (traced(net, image, a='layer2.0.relu#*'), [image], 'reads 2 calls, and 1 tensors'),
        (traced(net, image, a='layer1'), [image], 'give a list for #'),
        (FeatureTaps(dict(a='layer1')), image, 'it must be traced'),
    ):
        with pytest.raises(ValueError, match=f"tap 'a': .*{says}"), taps.substitute(net, 'a', value):
            pass
