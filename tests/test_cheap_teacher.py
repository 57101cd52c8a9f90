"""What makes the teacher cost less gives the plain teacher's features, up to rounding, and leaves its weights alone."""

import copy

import pytest
import torch
from mmengine.registry import MODELS
from run_helpers import HOSTS, STAGES, built, teacher_file
from torch import nn

from lckd_mm.contexts import computes_in_bfloat16
from lckd_mm.distillation import FrozenTeacher
from lckd_mm.distillation import teacher as module
from lckd_mm.hosts import run_once
from lckd_mm.taps import FeatureTaps

BFLOAT16 = computes_in_bfloat16('cpu')
#: Options, the type of the features, and a bound of their relative error; measured below 1e-6 and 7e-3.
OPTIONS = [
    (dict(channels_last=True), torch.float32, 1e-5),
    (dict(fold_bn=True), torch.float32, 1e-5),
    (dict(channels_last=True, fold_bn=True), torch.float32, 1e-5),
    *([(dict(precision='bf16', channels_last=True, fold_bn=True), torch.bfloat16, 2e-2)] if BFLOAT16 else []),
]
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')


def teacher(host, taps, net=None, **options):
    """A teacher with weights and statistics of its own, and its traced taps."""
    torch.manual_seed(0)
    made = FrozenTeacher(net or HOSTS[host][0](8), 'a.pth', **options)
    for norm in norms(made.model):
        norm.running_mean.normal_(0, 0.3)
        norm.running_var.uniform_(0.5, 2)
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    made.loaded = True
    taps = FeatureTaps(taps, 'teacher')
    assert taps.trace(made.model, lambda: run_once(made.model, (64, 64), 'tensor')) == set()
    return made, taps


def norms(net):
    return [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]


def gaps(features, others):
    return {name: module._gap(feature, others[name]) for name, feature in features.items()}


@pytest.mark.parametrize('host', HOSTS)
def test_the_features_are_the_plain_teacher_s(scope, host):
    scope(host)
    names, images = STAGES | HOSTS[host][2], torch.randn(2, 3, 64, 64)
    plain, taps = teacher(host, names)
    expected = plain(taps, names, images, None)
    state = plain.model.state_dict()
    for options, dtype, bound in OPTIONS:
        made, taps = teacher(host, names, **options)
        seen, last = [], options.get('channels_last', False)
        made.model.backbone.layer2.register_forward_hook(lambda _, args, output, seen=seen: seen.append(output))
        features = made(taps, names, images, None)
        assert max(gaps(features, expected).values()) < bound, options
        assert features['stage1'].dtype == dtype
        # It works in this format, and what terms see has the images'.
        assert seen[-1].is_contiguous(memory_format=torch.channels_last) == last and features['stage2'].is_contiguous()
        if last:
            features = made(taps, names, images.to(memory_format=torch.channels_last), None)
            assert features['stage2'].is_contiguous(memory_format=torch.channels_last)
        if 'fold_bn' in options:
            # All, but those behind the last tap, and the auxiliary head's.
            assert len(made._folding.layers) == (len(norms(made.model)) - (host == 'mmseg'))
        # What is loaded, inherited, or read by a margin is the net's as before.
        own = made.model.state_dict()
        assert list(own) == list(state) and all(torch.equal(v, state[k]) for k, v in own.items())


def test_a_pair_between_whose_layers_a_tap_reads_is_not_folded(scope):
    scope('mmpretrain')
    block, beside = 'backbone.layer1.0', 'backbone.layer2.0.downsample'
    names = dict(raw=f'{block}.conv1', read=f'{block}.bn2@in', normed=f'{beside}.1')
    plain, taps = teacher('mmpretrain', names)
    made, taps = teacher('mmpretrain', names, fold_bn=True)
    images = torch.randn(2, 3, 64, 64)
    found = gaps(made(taps, names, images, None), plain(taps, names, images, None))
    assert max(found.values()) < 1e-5
    folded = {path for path, layer in made.model.named_modules() if 'forward' in vars(layer)}
    assert not any(path.startswith(f'{block}.') for path in folded) and {f'{beside}.0', f'{beside}.1'} <= folded


def test_taps_of_a_later_call_are_folded_too(scope):
    scope('mmpretrain')
    made, taps = teacher('mmpretrain', STAGES, fold_bn=True)
    images, counts = torch.randn(2, 3, 64, 64), []
    for names in (['stage1'], ['stage1', 'stage4'], ['stage4']):
        made(taps, names, images, None)
        counts.append(len(made._folding.layers))
    assert counts[0] < counts[1] == counts[2]


@MODELS.register_module()
class Forked(nn.Module):
    """``way``: who reads what the convolution gives besides the first BatchNorm."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.stem, self.norm, self.other = nn.Sequential(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        y = self.stem(x)
        if self.way == 'in place':
            y += 1
        z = self.norm(y)
        if self.way == 'sum':
            z = z + y
        if self.way == 'shared':
            z = z + self.other(self.stem(x.flip(3)))
        return (self.last(z),)


@pytest.mark.parametrize('way', ['in place', 'shared', 'sum', 'tapped'])
def test_what_other_layers_read_is_not_folded(scope, way):
    scope('mmpretrain')
    net = dict(type='ImageClassifier', backbone=dict(type='Forked', way=way))
    names, images = dict(last='backbone.last'), torch.randn(2, 3, 16, 16)
    if way == 'tapped':
        names['stem'] = 'backbone.stem'
    plain, taps = teacher('mmpretrain', names, net)
    expected = plain(taps, names, images, None)['last']
    made, taps = teacher('mmpretrain', names, net, fold_bn=True)
    if way == 'sum':
        with pytest.raises(ValueError, match=r"teacher: with fold_bn=True the tap 'last' differs .*; remove fold_bn"):
            made(taps, names, images, None)
    else:
        torch.testing.assert_close(made(taps, names, images, None)['last'], expected, rtol=0, atol=0)
    assert not any('forward' in vars(layer) for layer in made.model.modules())


def test_what_a_tap_of_a_later_call_shows_is_not_missed(scope):
    """The pair is folded for the first tap, behind which the sum reads what the convolution gives."""
    scope('mmpretrain')
    net = dict(type='ImageClassifier', backbone=dict(type='Forked', way='sum'))
    made, taps = teacher('mmpretrain', dict(first='backbone.norm', last='backbone.last'), net, fold_bn=True)
    images = torch.randn(2, 3, 16, 16)
    made(taps, ['first'], images, None)
    assert len(made._folding.layers) == 1
    with pytest.raises(ValueError, match=r"teacher: with fold_bn=True the tap 'last' differs"):
        made(taps, ['last'], images, None)


@pytest.mark.parametrize(
    ('options', 'says'),
    [
        (dict(precision='half'), "teacher: unknown precision 'half', expected one of bf16, fp16"),
        (dict(precision='fp16'), r"teacher: precision='fp16' needs a GPU, and there is none; write precision='bf16'"),
        (dict(precision='bf16'), "teacher: precision='bf16' needs .*, and this CPU has none; remove precision"),
        (dict(channels_last=1), 'teacher: channels_last must be True or False, got 1'),
        (dict(fold_bn=None), 'teacher: fold_bn must be True or False, got None'),
        (dict(fold_bn=True, bn='batch'), "teacher: fold_bn=True folds .* and bn='batch' uses .*; remove one"),
    ],
)
def test_wrong_values_are_refused(monkeypatch, options, says):
    monkeypatch.setattr(module, 'get_device', lambda: 'cpu')
    monkeypatch.setattr(module, 'computes_in_bfloat16', lambda device: False)
    with pytest.raises(ValueError, match=says):
        FrozenTeacher(HOSTS['mmpretrain'][0](4), 'a.pth', **options)


def test_an_error_that_may_come_from_an_option_names_it(scope):
    scope('mmpretrain')
    made, taps = teacher('mmpretrain', STAGES, channels_last=True)
    made.model.backbone.layer2.register_forward_pre_hook(lambda _, args: args[0].view(-1))
    with pytest.raises(ValueError, match=r"images that both take, or remove the teacher's channels_last"):
        made(taps, ['stage2'], torch.randn(2, 3, 64, 64), None)


def test_an_unknown_option_is_refused(built):
    with pytest.raises(
        KeyError, match=r'expected the keys model, .* prefix, stored, model or module at least, got .*compile'
    ):
        built('mmpretrain', prepare=lambda cfg: cfg['teacher'].update(compile=True))


def test_terms_are_the_same_in_float32(built):
    """Margins from BatchNorms that are folded, a part of the teacher that runs again, its inherited weights."""
    results = []
    for options in ({}, OPTIONS[-1][0]):
        model, images, samples = built('mmdet', prepare=lambda cfg, options=options: prepare(cfg, options))
        losses = model.loss(images, samples)
        sum(losses[name] for name in model.terms).backward()
        model.terms.bind(model.teacher.model)
        model.copy_teacher_weights()
        results.append((losses, copy.deepcopy(model.terms['loss_ofd'].teacher_connectors), model.student))
    (plain, margins, student), (other, same, inheriting) = results
    for name in ('loss_ofd', 'loss_crosskd', 'loss_lipschitz'):
        assert other[name].dtype == torch.float32
        torch.testing.assert_close(other[name], plain[name], rtol=3e-2, atol=1e-4)
    assert all(torch.equal(a.margin, b.margin) and (a.margin < 0).all() for a, b in zip(margins, same))
    for (name, a), b in zip(student.named_parameters(), inheriting.parameters()):
        assert torch.equal(a, b)
        if a.grad is None:
            continue
        torch.testing.assert_close(b.grad, a.grad, rtol=0.1, atol=0.1 * float(a.grad.abs().max()), msg=name)


def prepare(cfg, options):
    cfg['teacher'].update(options)
    cfg['inherit'] = ['bbox_head.retina_cls', 'neck.fpn_convs']
    for net in (cfg['student'], cfg['teacher']['model']):
        net['bbox_head'].update(stacked_convs=2, norm_cfg=dict(type='BN'))
    torch.manual_seed(7)
    weights = MODELS.build(dict(cfg['teacher']['model'], _scope_='mmdet')).state_dict()
    torch.save(dict(state_dict=weights), cfg['teacher']['checkpoint'])
    cfg['taps']['tower'] = 'bbox_head.cls_convs.0.activate@in#*'
    cfg['terms']['loss_ofd'] = dict(
        loss=dict(type='lckd_mm.OFDLoss'), on=list(STAGES), weight=1e-3, connector=dict(type='lckd_mm.ConvBN'),
        teacher_connector=dict(type='lckd_mm.MarginReLU'),
    )  # fmt: skip
    cfg['terms']['loss_crosskd'] = dict(
        loss=dict(type='lckd_mm.BCKDLoss'), student='tower', reuse='tower', teacher='logits',
        connector=dict(type='lckd_mm.MatchStatistics'),
    )  # fmt: skip


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize('host', HOSTS)
def test_the_features_are_the_plain_teacher_s_on_a_gpu(scope, host):
    scope(host)
    names, images = STAGES | HOSTS[host][2], torch.randn(2, 3, 64, 64)
    plain, taps = teacher(host, names)
    expected = plain(taps, names, images, None)
    half = [(dict(precision=p, channels_last=True, fold_bn=True), t, 2e-2) for p, t in module._PRECISIONS.items()]
    for options, dtype, bound in [*OPTIONS[:3], *half]:
        made, taps = teacher(host, names, **options)
        made.move(lambda x: x.cuda())
        # TF32 rounds the products of a GPU's convolutions.
        with torch.backends.cudnn.flags(allow_tf32=False):
            features = made(taps, names, images.cuda(), None)
        found = {n: [y.cpu() for y in x] if isinstance(x, list) else x.cpu() for n, x in features.items()}
        assert max(gaps(found, expected).values()) < bound, options
        assert features['stage1'].dtype == dtype
        # Once folded, it may move.
        made.move(lambda x: x.cpu())
