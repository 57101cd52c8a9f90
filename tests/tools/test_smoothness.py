"""Stages' norms, constants and bounds against what they must be by hand and against dense Jacobians."""

import math

import pytest
import smoothness
import torch
from mmengine.config import Config
from mmengine.structures import BaseDataElement
from run_helpers import classifier, detector
from smoothness import GaussianNoise, Net, Point, Stage
from spectra import reference_norm
from torch import nn

from lckd_mm.distillation.dry_run import MadeUpImage, trace_taps
from lckd_mm.functional import graph_bound, local_lipschitz
from lckd_mm.hosts import build_model, run_once
from lckd_mm.taps import FeatureTaps


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Host(nn.Module):
    """A chain with the signature of the hosts' models: three 1 x 1 convolutions."""

    def __init__(self, *scales, skip=False):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in scales)
        self.skip = skip
        for layer, scale in zip(self.layers, scales):
            layer.weight.data = scale * torch.eye(3)[:, :, None, None]

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = inputs
        for i, layer in enumerate(self.layers):
            x = layer(x) + (inputs if self.skip and i == 1 else 0)
        return x


def net_of(model, addresses, size=(8, 8)):
    taps = FeatureTaps(addresses)
    model.eval().requires_grad_(False)
    taps.trace(model, lambda: model(torch.zeros(1, 3, *size).to(next(model.parameters()).dtype)))
    return Net(model, taps)


def stage(front, back):
    return Stage(Point(front), Point(back))


LAYERS = {f'stage{i + 1}': f'layers.{i}' for i in range(3)}


def test_a_chain_of_known_scales():
    net = net_of(Host(2.0, 3.0, -0.5), LAYERS)
    stages = smoothness.stages_of(net, list(LAYERS))
    assert list(map(str, stages)) == ['stage1 → stage2', 'stage2 → stage3']
    images = [(torch.randn(3, 3, 8, 8), None), (torch.randn(2, 3, 8, 8), None)]
    figures = smoothness.measure(net, stages, images, [0.1])
    for stage, expected in zip(figures['stages'].values(), (3.0, 0.5)):
        assert stage['constant'] == pytest.approx([expected] * 5, rel=1e-5)
        assert stage['bound'] == pytest.approx(expected, rel=1e-5)
    for tap, expected in zip(figures['taps'].values(), (2.0, 6.0, 3.0)):
        assert tap['image'] == pytest.approx([expected] * 5, rel=1e-5)
    assert figures['unconverged'] == 0
    # sigma is the exact one, and of maps over their lengths it is the same for any scale.
    with torch.no_grad():
        features = smoothness.features_of(net, LAYERS, images[0][0], None)
    exact = reference_norm(features['stage1'].double(), features['stage2'].double())
    assert figures['stages']['stage1 → stage2']['sigma'][:3] == pytest.approx(exact.tolist(), rel=1e-4)
    for layer in net.model.layers:
        layer.bias.data.zero_()
    once = smoothness.measure(net, stages, images, without=['constant', 'image', 'bound'])
    for layer in net.model.layers:
        layer.weight.data *= 5
    again = smoothness.measure(net, stages, images, without=['constant', 'image', 'bound'])
    for a, b in zip(once['stages'].values(), again['stages'].values()):
        assert a['normalised'] == pytest.approx(b['normalised'], rel=1e-4)
        assert max(a['normalised']) <= 1 + 1e-4
    assert again['stages']['stage2 → stage3']['sigma'] == pytest.approx(
        [5**5 * x for x in once['stages']['stage2 → stage3']['sigma']], rel=1e-3
    )


def test_noise_moves_a_linear_net_by_its_own_length():
    net = net_of(Host(2.0, 3.0), {k: LAYERS[k] for k in ('stage1', 'stage2')})
    for layer in net.model.layers:
        layer.bias.data.zero_()
    images = torch.randn(4, 3, 8, 8)
    noise = GaussianNoise(0.5, seed=3)(images, None) - images
    expected = noise.flatten(1).norm(dim=1) / images.flatten(1).norm(dim=1)
    stages = smoothness.stages_of(net, ['stage1', 'stage2'])
    parts = ['constant', 'image', 'bound']
    figures = smoothness.measure(net, stages, [(images[:3], None), (images[3:], None)], [0.5], 3, parts)
    for tap in figures['taps'].values():
        assert tap['changes']['0.5'][:3] == pytest.approx(expected[:3].tolist(), rel=1e-4)
        assert tap['image'] == []
    assert noise.std().item() == pytest.approx(0.5, rel=0.05)
    assert torch.equal(noise, GaussianNoise(0.5, seed=3)(images, None) - images)
    assert not torch.equal(noise, GaussianNoise(0.5, seed=4)(images, None) - images)


def test_padding_gets_no_noise():
    images = torch.zeros(2, 3, 6, 8)
    samples = [BaseDataElement(metainfo=dict(img_shape=shape)) for shape in ((6, 8), (4, 5))]
    noisy = GaussianNoise(1.0, 0)(images, samples)
    assert (noisy[0] != 0).all() and (noisy[1, :, :4, :5] != 0).all()
    assert noisy[1].count_nonzero() == 3 * 4 * 5


def dense_constants(function, inputs):
    jacobians = [torch.func.jacrev(function)(x[None]).reshape(-1, x.numel()) for x in inputs]
    return torch.stack([torch.linalg.svdvals(j)[0] for j in jacobians])


def trained_statistics(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.3)
    return model.double().eval().requires_grad_(False)


def wide_resnet(**changes):
    cfg = dict(
        type='ImageClassifier',
        backbone=dict(type='lckd_mm.WideResNet', depth=10, widen_factor=1),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=10, in_channels=64, loss=dict(type='CrossEntropyLoss')),
    )
    model = build_model(cfg | changes, 'mmpretrain')
    model.init_weights()
    return trained_statistics(model)


def test_stages_of_a_wide_resnet_equal_their_dense_jacobians():
    model = wide_resnet()
    taps = dict(stage1='backbone.block2.0.bn1', stage2='backbone.block3.0.bn1', stage3='backbone.bn1')
    net = net_of(model, taps)
    images = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    features = smoothness.features_of(net, taps, images, None)

    def behind_norm(block, x):
        activated = x.relu()
        return block.shortcut(activated) + block.conv2(block.relu2(block.bn2(block.conv1(activated))))

    net_body = model.backbone
    by_hand = {
        'stage1': lambda x: net_body.block3[0].bn1(behind_norm(net_body.block2[0], x)),
        'stage2': lambda x: net_body.bn1(behind_norm(net_body.block3[0], x)),
    }
    for front, back in smoothness.stages_of(net, list(taps)):
        function = by_hand[front.tap]
        torch.testing.assert_close(function(front.of(features)), back.of(features))
        exact = dense_constants(function, front.of(features))
        ours = smoothness.stage_map(net, Stage(front, back), images, None)
        constants, residual = local_lipschitz(*ours, 1e-6, residual=True)
        torch.testing.assert_close(constants, exact, rtol=1e-6, atol=0)
        assert (residual <= 1e-6).all()
        assert graph_bound(ours[0], ours[1][:1], 1e-3) >= exact.max()
    layers = nn.Sequential(*(getattr(net_body, name) for name in ('conv1', 'block1', 'block2', 'block3', 'bn1')))
    exact = dense_constants(layers, images)
    figures = smoothness.measure(net, smoothness.stages_of(net, list(taps)), [(images, None)], tol=1e-6)
    assert figures['taps']['stage3']['image'] == pytest.approx(exact.tolist(), rel=1e-6)


def test_stages_before_the_last_relu_are_functions_of_one_another():
    model = trained_statistics(build_model(classifier(4), 'mmpretrain'))
    taps = FeatureTaps({f'stage{i}': f'backbone.layer{i}@preact' for i in range(1, 5)})
    trace_taps(taps, model, MadeUpImage(3, (32, 32)))
    net = Net(model, taps)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        features = smoothness.features_of(net, taps.addresses, images, None)
    for i in (1, 2, 3):
        front, back = f'stage{i}', f'stage{i + 1}'
        with torch.no_grad():
            function, at = smoothness.stage_map(net, stage(front, back), images, None)
            torch.testing.assert_close(at, features[front])
            # The stage goes on from what it is given, and from nothing else.
            torch.testing.assert_close(function(at.clone()), features[back])
            torch.testing.assert_close(function(at.flip(0)), features[back].flip(0))
        constants, residual = local_lipschitz(function, at, 1e-3, residual=True)
        assert (residual <= 2e-3).all()
        assert graph_bound(function, at[:1], 1e-3) >= constants.max() > 0


def test_where_a_stage_is_no_function_it_has_no_constant():
    net = net_of(Host(2.0, 3.0, 4.0, skip=True), LAYERS)
    images = torch.randn(2, 3, 8, 8)
    # The image is added before what stage2's tap, the third layer's output, reads; and not before the tap itself.
    assert smoothness.stage_map(net, stage('stage1', 'stage2'), images, None) is not None
    assert smoothness.stage_map(net, stage('stage1', 'stage3'), images, None) is None
    figures = smoothness.measure(net, [stage('stage1', 'stage3')], [(images, None)])
    row = figures['stages']['stage1 → stage3']
    assert row['constant'] is None and row['bound'] is None and len(row['sigma']) == 2
    # From the image to stage3: 4 (3 * 2 + 1).
    assert figures['taps']['stage3']['image'] == pytest.approx([28.0] * 2, rel=1e-5)


def test_levels_of_a_pyramid():
    model = trained_statistics(build_model(detector(4), 'mmdet')).float()
    taps = FeatureTaps({'p2': 'neck[0]', 'p3': 'neck[1]', 'scores': 'bbox_head.retina_cls#*'})
    taps.trace(model, lambda: run_once(model, (32, 32), 'tensor'))
    net = Net(model, taps)
    images = torch.randn(2, 3, 32, 32)
    assert smoothness.stage_map(net, stage('p2', 'p3'), images, None) is None
    stages = smoothness.stages_of(net, ['scores'])
    assert list(map(str, stages)) == [f'scores[{i}] → scores[{i + 1}]' for i in range(3)]
    figures = smoothness.measure(net, stages, [(images, None)], [0.2])
    assert list(figures['taps']) == [f'scores[{i}]' for i in range(4)]
    for tap in figures['taps'].values():
        assert all(math.isfinite(x) and x > 0 for x in (*tap['image'], *tap['changes']['0.2']))
    assert all(stage['constant'] is None for stage in figures['stages'].values())


def test_an_operation_without_a_known_constant_is_named():
    class Squeeze(Host):
        def forward(self, inputs, data_samples=None, mode='tensor'):
            x = self.layers[0](inputs)
            return self.layers[1](x * x.mean((2, 3), keepdim=True))

    net = net_of(Squeeze(1.0, 1.0), dict(a='layers.0', b='layers.1'))
    figures = smoothness.measure(net, [stage('a', 'b')], [(torch.randn(1, 3, 8, 8), None)])
    row = figures['stages']['a → b']
    assert row['bound'] is None and 'mul has no constant' in row['bound_refused']
    assert len(row['constant']) == 1


def links(terms, student=None, **model):
    return smoothness.lipschitz_links(Config(dict(model=dict(type='X', terms=terms, **model))), student)


def of_both(*pairs):
    return [(pair, pair) for pair in pairs]


def test_terms_that_share_stages_have_them_once():
    def shared(*ends):
        return links({f'loss_{i}': dict(loss=dict(type='lckd_mm.LipschitzLoss'), **end) for i, end in enumerate(ends)})

    assert shared(dict(on=['a', 'b', 'c']), dict(on=['b', 'c'])) == of_both(('a', 'b'), ('b', 'c'))
    assert shared(dict(on=['b', 'c']), dict(on=['a', 'b', 'c'])) == of_both(('b', 'c'), ('a', 'b'))
    assert shared(dict(on='p'), dict(on='p')) == of_both(('p',))
    with pytest.raises(ValueError, match=r"'b'.*'q' and 'r'"):
        shared(dict(student=['a', 'b'], teacher=['p', 'q']), dict(student=['b', 'c'], teacher=['r', 's']))


def test_links_are_those_of_the_lipschitz_terms():
    lipschitz, others = dict(type='lckd_mm.LipschitzLoss'), dict(loss_kd=dict(loss=dict(type='lckd_mm.KDLoss')))
    terms = dict(
        loss_a=dict(loss=lipschitz, on=['stage1', 'stage2']),
        loss_b=dict(
            loss=dict(type='Wrapper', loss=dict(type='LipschitzLoss')), student=['p2', 'p3'], teacher=['q2', 'q3']
        ),
        loss_c=dict(loss=dict(type='lckd_mm.LONDONLoss'), on='scores'),
        loss_gone=None,
        **others,
    )
    expected = [*of_both(('stage1', 'stage2')), (('p2', 'p3'), ('q2', 'q3')), *of_both(('scores',))]
    assert links(terms) == expected
    named = dict(stage1='a', stage2='b', logits='c')
    assert links(others, taps=['backbone', named]) == of_both(('stage1', 'stage2'))
    for taps in (None, 'backbone', dict(logits='c')):
        assert links(others, wide_resnet(), taps=taps) == of_both(('stage1', 'stage2'), ('stage2', 'stage3'))
