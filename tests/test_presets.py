"""Presets: the taps of 'backbone', 'neck' and 'logits' fire, carry gradient, and are what the rule says."""

import copy

import pytest
import torch
from mmengine.config import Config
from run_helpers import ROOT, classifier, detector, segmentor
from torch import nn
from torch.nn import functional as F

from lckd_mm.hosts import build_model, read_model_config, run_once
from lckd_mm.taps import FeatureTaps
from lckd_mm.taps.presets import preset_taps
from lckd_mm.taps.search import log_strides

SWIN = dict(type='SwinTransformer', embed_dims=8, depths=(2, 2, 2, 2), num_heads=(1, 1, 2, 2), window_size=4)


class Model(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, x):
        return self.backbone(x)


def features_of(scope, size=64, preset='backbone', **backbone):
    """Addresses, features and the outputs of the backbone, in training with gradient, of an image that is not square
    where the size has two numbers."""
    torch.manual_seed(0)
    model = Model(build_model(backbone, scope)).eval()
    size = size if isinstance(size, tuple) else (size, size)
    taps = FeatureTaps(preset_taps(model, preset, size))
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        assert taps.trace(model, lambda: model(image)) == set()
    model.train()
    with taps.record(model, require_grad=True) as features:
        outputs = model(image)
    first = next(p for p in model.parameters() if p.dim() == 4)
    for name, feature in features.items():
        (gradient,) = torch.autograd.grad(feature.square().sum(), first, retain_graph=True)
        assert gradient.abs().max() > 0, name
    return {n: str(a) for n, a in taps.addresses.items()}, features, outputs


def shapes(features):
    return {name: tuple(x.shape[1:]) for name, x in features.items()}


# ---- residual nets

RESIDUAL = [
    ('mmpretrain', dict(type='ResNet', depth=18, base_channels=8, stem_channels=8)),
    ('mmpretrain', dict(type='ResNetV1c', depth=50, base_channels=8, stem_channels=8)),
    ('mmpretrain', dict(type='ResNetV1d', depth=50, base_channels=8, stem_channels=8)),
    ('mmpretrain', dict(type='ResNet_CIFAR', depth=18, base_channels=8, stem_channels=8)),
    ('mmpretrain', dict(type='ResNeXt', depth=50, groups=8, width_per_group=4)),
    ('mmpretrain', dict(type='SEResNet', depth=50, se_ratio=4, base_channels=8, stem_channels=8)),
    ('mmpretrain', dict(type='RegNet', arch='regnetx_400mf')),
    ('mmseg', dict(type='ResNetV1c', depth=50, base_channels=8, stem_channels=8, dilations=(1, 1, 2, 4),
                   strides=(1, 2, 1, 1))),
    ('mmseg', dict(type='ResNeXt', depth=50, groups=8, base_width=4)),
    ('mmdet', dict(type='ResNet', depth=50, base_channels=8, stem_channels=8, style='caffe')),
    ('mmdet', dict(type='ResNeXt', depth=50, groups=8, base_width=4)),
    ('mmdet', dict(type='Res2Net', depth=50, scales=4, base_width=26)),
]  # fmt: skip


@pytest.mark.parametrize('scope, backbone', RESIDUAL, ids=lambda x: x['type'] if isinstance(x, dict) else x)
def test_residual_stages_are_read_before_their_last_relu(scope, backbone):
    out = dict(backbone, out_indices=(0, 1, 2, 3))
    addresses, features, outputs = features_of(scope, **out)
    assert addresses == {f'stage{i}': f'backbone.layer{i}@preact' for i in (1, 2, 3, 4)}
    for feature, output in zip(features.values(), outputs, strict=True):
        assert feature.min() < 0 and torch.equal(feature.relu(), output)


# ---- linear bottlenecks


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmseg', 'mmdet'])
def test_mobilenet_v2_is_read_behind_the_last_norm_of_each_scale(scope):
    addresses, features, _ = features_of(scope, type='MobileNetV2', widen_factor=0.5, out_indices=(1, 2, 4, 6))
    blocks = {'stage1': 'layer2.1', 'stage2': 'layer3.2', 'stage3': 'layer5.2', 'stage4': 'layer7.0'}
    assert {name: address.split('.')[1:3] for name, address in addresses.items()} == {
        name: block.split('.') for name, block in blocks.items()
    }
    assert shapes(features) == dict(stage1=(16, 16, 16), stage2=(16, 8, 8), stage3=(48, 4, 4), stage4=(160, 2, 2))
    for feature in features.values():
        # A BatchNorm's output in training: mean 0 and variance 1 in each channel, both signs.
        assert feature.mean((0, 2, 3)).abs().max() < 1e-4
        assert feature.var((0, 2, 3), correction=0).median().item() == pytest.approx(1, abs=1e-2)


# ---- VGG


@pytest.mark.parametrize('norm_cfg', [None, dict(type='BN')], ids=['plain', 'bn'])
def test_vgg_of_mmpretrain_is_read_before_the_last_relu_of_each_stage(norm_cfg):
    addresses, features, outputs = features_of(
        'mmpretrain', type='VGG', depth=11, norm_cfg=norm_cfg, out_indices=(0, 1, 2, 3, 4)
    )
    assert list(addresses.values()) == [f'backbone.features.{i}@preact' for i in (0, 2, 5, 8, 11)]
    for feature, output in zip(features.values(), outputs, strict=True):
        assert feature.min() < 0 and torch.equal(F.max_pool2d(feature.relu(), 2), output)


def test_ssd_vgg_is_read_as_deep_as_its_head_reads():
    addresses, features, outputs = features_of(
        'mmdet', size=96, type='SSDVGG', depth=16, with_last_pool=False, ceil_mode=True, out_indices=(3, 4),
        out_feature_indices=(22, 34),
    )  # fmt: skip
    assert list(addresses.values()) == [f'backbone.features.{i}@in' for i in (3, 8, 15, 22, 29, 34)]
    assert torch.equal(features['stage4'].relu(), outputs[0]) and torch.equal(features['stage6'].relu(), outputs[1])


def test_vgg_of_mmcv_with_batch_norm():
    from mmcv.cnn import VGG

    model = Model(VGG(11, with_bn=True, bn_eval=False))
    assert list(preset_taps(model, 'backbone').values()) == [f'backbone.features.{i}@in' for i in (2, 6, 13, 20, 27)]


# ---- transformers


@pytest.mark.parametrize('scope', ['mmseg', 'mmdet'])
def test_swin_outputs_are_maps_of_any_image(scope):
    addresses, features, outputs = features_of(scope, size=(64, 96), **SWIN)
    assert list(addresses.values()) == [f'backbone[{i}]' for i in range(4)]
    assert shapes(features) == dict(stage1=(8, 16, 24), stage2=(16, 8, 12), stage3=(32, 4, 6), stage4=(64, 2, 3))
    assert all(torch.equal(f, o) for f, o in zip(features.values(), outputs, strict=True))


@pytest.mark.parametrize('scope', ['mmseg', 'mmdet'])
def test_swin_stages_that_are_not_given_out_are_tokens(scope):
    addresses, features, outputs = features_of(scope, out_indices=(1, 3), **SWIN)
    assert list(addresses.values()) == ['backbone.stages.0[2]', 'backbone[0]', 'backbone.stages.2[2]', 'backbone[1]']
    assert shapes(features) == dict(stage1=(256, 8), stage2=(16, 8, 8), stage3=(16, 32), stage4=(64, 2, 2))
    assert torch.equal(features['stage4'], outputs[1])


@pytest.mark.parametrize(
    'kind, more', [('SwinTransformer', {}), ('SwinTransformerV2', dict(extra_norm_every_n_blocks=0))]
)
def test_swin_of_mmpretrain_gives_its_last_stage_only(kind, more):
    arch = dict(embed_dims=8, depths=[2, 2, 2, 2], num_heads=[1, 1, 2, 2], **more)
    addresses, features, outputs = features_of(
        'mmpretrain', type=kind, arch=arch, img_size=64, window_size=4, pad_small_map=True
    )
    assert list(addresses.values()) == [*(f'backbone.stages.{i}[0]' for i in range(3)), 'backbone[0]']
    assert shapes(features) == dict(stage1=(256, 8), stage2=(64, 16), stage3=(16, 32), stage4=(64, 2, 2))
    assert torch.equal(features['stage4'], outputs[0])


def test_mix_transformer_gives_maps_or_the_tokens_behind_the_norm_of_a_stage():
    mit = dict(type='MixVisionTransformer', embed_dims=8, num_layers=[1, 1, 1, 1], num_heads=[1, 2, 4, 8])
    addresses, features, _ = features_of('mmseg', size=(64, 96), **mit)
    assert list(addresses.values()) == [f'backbone[{i}]' for i in range(4)]
    assert shapes(features)['stage1'] == (8, 16, 24)
    addresses, features, _ = features_of('mmseg', out_indices=(0, 2, 3), **mit)
    assert list(addresses.values()) == ['backbone[0]', 'backbone.layers.1.2', 'backbone[1]', 'backbone[2]']
    assert shapes(features) == dict(stage1=(8, 16, 16), stage2=(64, 16), stage3=(32, 4, 4), stage4=(64, 2, 2))


# ---- this package's own


@pytest.mark.parametrize(
    'backbone, file, taps',
    [
        (dict(type='lckd_mm.WideResNet', depth=10), 'wrn', 'wrn_taps'),
        (dict(type='lckd_mm.PyramidNet', depth=8, alpha=9), 'pyramidnet', 'pyramidnet_taps'),
        (dict(type='lckd_mm.PyramidNet', depth=11, alpha=9, bottleneck=True), 'pyramidnet',
         'pyramidnet_bottleneck_taps'),
        (dict(type='lckd_mm.CifarResNet', depth=8), 'cifar_resnet', 'cifar_resnet_taps'),
        (dict(type='lckd_mm.MobileNetV1', stem='cifar', width_multiplier=0.25), 'mobilenetv1', 'mobilenetv1_taps'),
    ],
    ids=lambda x: x['type'][8:] if isinstance(x, dict) else x,
)  # fmt: skip
def test_our_backbones_have_the_positions_of_the_configs(backbone, file, taps):
    written = Config.fromfile(ROOT / f'configs/_base_/taps/{file}.py')[taps]
    addresses, features, outputs = features_of('mmpretrain', size=32, **backbone)
    assert addresses == {name: address for name, address in written.items() if name.startswith('stage')}
    last = list(features.values())[-1]
    assert last.min() < 0 and torch.equal(last.relu(), outputs[0])


# ---- any other backbone: what it returns, then what it calls itself

BACKBONES = [
    ('mmdet', dict(type='CSPDarknet', widen_factor=0.125, deepen_factor=0.33),
     dict(stage1='backbone.stage1', stage2='backbone[0]', stage3='backbone[1]', stage4='backbone[2]')),
    ('mmdet', dict(type='CSPNeXt', widen_factor=0.125, deepen_factor=0.2),
     dict(stage1='backbone.stage1', stage2='backbone[0]', stage3='backbone[1]', stage4='backbone[2]')),
    ('mmdet', dict(type='PyramidVisionTransformerV2', embed_dims=8, num_layers=[1, 1, 1, 1], num_heads=[1, 1, 1, 1]),
     dict(stage1='backbone[0]', stage2='backbone[1]', stage3='backbone[2]', stage4='backbone[3]')),
    ('mmseg', dict(type='MobileNetV3', arch='small', out_indices=(0, 1, 12)),
     dict(stage1='backbone[1]', stage2='backbone[2]')),
    ('mmseg', dict(type='MSCAN', embed_dims=[8, 8, 16, 16], depths=[1, 1, 1, 1]),
     dict(stage1='backbone[0]', stage2='backbone[1]', stage3='backbone[2]', stage4='backbone[3]')),
    ('mmseg', dict(type='UNet', base_channels=4),
     dict(stage1='backbone[2]', stage2='backbone[1]', stage3='backbone[0]')),
    # In training they return more than in evaluation.
    ('mmseg', dict(type='PIDNet', channels=4, ppm_channels=8, num_stem_blocks=2, num_branch_blocks=3),
     dict(stage2='backbone.dfm', stage3='backbone.i_branch_layers.0', stage4='backbone.i_branch_layers.1')),
    ('mmseg', dict(type='DDRNet', channels=4, ppm_channels=8),
     dict(stage2='backbone.spatial_branch_layers.2', stage3='backbone.relu@in#2', stage4='backbone.relu@in#7')),
    ('mmpretrain', dict(type='ConvNeXt', arch=dict(depths=[1, 1, 1, 1], channels=[8, 16, 16, 32])),
     {f'stage{i + 1}': f'backbone.stages.{i}' for i in range(4)}),
    ('mmpretrain', dict(type='EfficientNet', arch='b0'),
     dict(stage1='backbone.layers.2', stage2='backbone.layers.3', stage3='backbone.layers.4', stage4='backbone[0]')),
    ('mmpretrain', dict(type='MobileNetV3', arch='small_050'),
     dict(stage1='backbone.layer1', stage2='backbone.layer3', stage3='backbone.layer8', stage4='backbone[0]')),
    ('mmpretrain', dict(type='RepVGG', arch=dict(num_blocks=[1] * 4, width_factor=[0.125] * 4, group_layer_map=None,
                                                 se_cfg=None)),
     dict(stage1='backbone.stage_1', stage2='backbone.stage_2', stage3='backbone.stage_3', stage4='backbone[0]')),
    ('mmpretrain', dict(type='MViT', arch=dict(embed_dims=16, num_layers=4, num_heads=1, downscale_indices=[1, 2, 3])),
     dict(stage1='backbone.blocks.0[0]', stage2='backbone.blocks.1[0]', stage3='backbone.blocks.2[0]',
          stage4='backbone[0]')),
]  # fmt: skip


@pytest.mark.parametrize('scope, backbone, expected', BACKBONES, ids=[f'{s} {b["type"]}' for s, b, _ in BACKBONES])
def test_a_stage_is_the_last_feature_of_its_stride(scope, backbone, expected):
    addresses, features, _ = features_of(scope, **backbone)
    assert addresses == expected
    for name, feature in features.items():
        side = 64 // 2 ** (int(name[-1]) + 1)
        assert side in feature.shape[2:] if feature.dim() == 4 else feature.shape[1] == side**2


@pytest.mark.parametrize('backbone', ['FastSCNN', 'VisionTransformer'])
def test_outputs_of_one_stride_are_stages_in_their_order(backbone):
    small = dict(
        FastSCNN=dict(
            downsample_dw_channels=(8, 8), global_in_channels=8, global_block_channels=(8, 8, 8),
            global_out_channels=8, higher_in_channels=8, lower_in_channels=8, fusion_out_channels=8,
        ),
        VisionTransformer=dict(img_size=64, embed_dims=16, num_layers=4, num_heads=2, out_indices=(0, 1, 2, 3)),
    )[backbone]  # fmt: skip
    addresses, features, outputs = features_of('mmseg', type=backbone, **small)
    assert addresses == {f'stage{i}': f'backbone[{i - 1}]' for i in range(1, len(outputs) + 1)}
    assert all(torch.equal(f, o) for f, o in zip(features.values(), outputs, strict=True))


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmseg'])
def test_a_vit_has_four_stages_of_its_depth(scope):
    arch = dict(embed_dims=16, num_layers=8, num_heads=2)
    arch = dict(arch=dict(arch, feedforward_channels=32)) if scope == 'mmpretrain' else arch
    addresses, features, _ = features_of(scope, type='VisionTransformer', img_size=64, **arch)
    assert addresses == {f'stage{i + 1}': f'backbone.layers.{2 * i + 1}' for i in range(4)}
    assert set(shapes(features).values()) == {(17, 16)}


def test_revvit_is_read_where_a_gradient_comes_back():
    arch = dict(embed_dims=16, num_layers=4, num_heads=2, feedforward_channels=32)
    backbone = dict(type='RevVisionTransformer', arch=arch, img_size=32, patch_size=16)
    net = build_model(dict(type='ImageClassifier', backbone=backbone), 'mmpretrain').train()
    taps = FeatureTaps(preset_taps(net, 'backbone', (32, 32)))
    assert set(taps.addresses) == {'stage1'}
    with taps.record(net, require_grad=True) as features:
        net(torch.randn(1, 3, 32, 32))
    assert features['stage1'].shape[0] == 1


def test_tridentnet_has_no_stage_that_runs_three_branches():
    addresses, _, _ = features_of(
        'mmdet', type='TridentResNet', depth=50, base_channels=8, stem_channels=8, num_stages=3, strides=(1, 2, 2),
        dilations=(1, 1, 1), num_branch=3, trident_dilations=(1, 2, 3), test_branch_idx=1, out_indices=(2,),
    )  # fmt: skip
    assert addresses == dict(stage1='backbone.layer1@preact', stage2='backbone.layer2@preact')


def test_finding_stages_changes_neither_the_net_nor_the_random_state():
    model = Model(build_model(dict(type='MobileNetV3', arch='small_050'), 'mmpretrain')).train()
    before, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    preset_taps(model, 'backbone', (64, 64))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(m.training and not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


# ---- levels and class scores

SMALL = dict(type='ResNet', depth=18, base_channels=4, stem_channels=4, norm_eval=False)
FPN = dict(
    type='FPN', in_channels=[4, 8, 16, 32], out_channels=8, start_level=1, add_extra_convs='on_output', num_outs=3
)
SIDE_BY_SIDE = dict(type='CSPDarknet', widen_factor=0.0625, deepen_factor=0.33)


def single_stage(kind, neck, backbone=SMALL, **head):
    # Four classes, as many as a box has coordinates.
    head = dict(num_classes=4, in_channels=8, feat_channels=8, stacked_convs=1, norm_cfg=dict(type='BN')) | head
    preprocessor = dict(type='DetDataPreprocessor')
    test_cfg = dict(nms_pre=10, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=5)
    return 'mmdet', dict(
        type=kind, data_preprocessor=preprocessor, backbone=backbone, neck=neck, bbox_head=head, test_cfg=test_cfg
    )


def anchors(**of):
    return dict(type='AnchorGenerator', ratios=[1.0], strides=[8, 16, 32], **of)


LEVELS = dict(p3='neck[0]', p4='neck[1]', p5='neck[2]')
MODELS = {
    'RetinaNet': (single_stage('RetinaNet', FPN, type='RetinaHead',
                               anchor_generator=anchors(octave_base_scale=4, scales_per_octave=2)),
                  LEVELS | dict(logits='bbox_head.retina_cls#*')),
    'FCOS': (single_stage('FCOS', FPN, type='FCOSHead', strides=[8, 16, 32]),
             LEVELS | dict(logits='bbox_head.conv_cls#*')),
    'GFL': (single_stage('GFL', FPN, type='GFLHead', anchor_generator=anchors(octave_base_scale=8, scales_per_octave=1),
                         loss_dfl=dict(type='DistributionFocalLoss')),
            LEVELS | dict(logits='bbox_head.gfl_cls#*')),
    'YOLOX': (single_stage('YOLOX', dict(type='YOLOXPAFPN', in_channels=[16, 32, 64], out_channels=8, num_csp_blocks=1),
                           SIDE_BY_SIDE, type='YOLOXHead'),
              LEVELS | {f'logits{i + 1}': f'bbox_head.multi_level_conv_cls.{i}' for i in range(3)}),
    'RTMDet': (single_stage('RTMDet', dict(type='CSPNeXtPAFPN', in_channels=[16, 32, 64], out_channels=8,
                                           num_csp_blocks=1),
                            SIDE_BY_SIDE, type='RTMDetSepBNHead', with_objectness=False,
                            anchor_generator=dict(type='MlvlPointGenerator', offset=0, strides=[8, 16, 32]),
                            bbox_coder=dict(type='DistancePointBBoxCoder'), loss_bbox=dict(type='GIoULoss')),
               LEVELS | {f'logits{i + 1}': f'bbox_head.rtm_cls.{i}' for i in range(3)}),
    'FCN': (('mmseg', segmentor(4)), dict(logits='decode_head.conv_seg')),
    'cascade': (('mmseg', segmentor(4) | dict(
        type='CascadeEncoderDecoder', num_stages=2, decode_head=[
            segmentor(4)['decode_head'],
            dict(type='OCRHead', in_channels=32, in_index=3, channels=8, ocr_channels=4, num_classes=11)])),
        dict(logits='decode_head.1.conv_seg')),
    'ResNet': (('mmpretrain', classifier(4)), dict(embedding='neck[0]', logits='head.fc')),
    'stacked': (('mmpretrain', classifier(4) | dict(head=dict(
        type='StackedLinearClsHead', num_classes=10, in_channels=32, mid_channels=[16]))),
        dict(embedding='neck[0]', logits='head.layers.1.fc')),
    'ViT': (('mmpretrain', dict(
        type='ImageClassifier',
        backbone=dict(type='VisionTransformer', img_size=64,
                      arch=dict(embed_dims=16, num_layers=4, num_heads=2, feedforward_channels=32)),
        head=dict(type='VisionTransformerClsHead', num_classes=10, in_channels=16))),
        dict(logits='head.layers.head')),
    # Its head does not tell the number of classes.
    'ViG': (('mmpretrain', classifier(4) | dict(head=dict(
        type='VigClsHead', num_classes=10, in_channels=32, hidden_dim=10))),
        dict(embedding='neck[0]', logits='head.fc2')),
}  # fmt: skip


@pytest.mark.parametrize('name', MODELS)
def test_levels_and_class_scores_are_found_and_can_be_tapped(name):
    (scope, config), expected = MODELS[name]
    torch.manual_seed(0)
    model = build_model(config, scope)
    found = {}
    for preset in ('neck', 'logits') if model.with_neck else ('logits',):
        found |= preset_taps(model, preset, (64, 64))
    assert found == expected
    taps = FeatureTaps(found)
    forward = 'predict' if name == 'cascade' else 'tensor'
    assert taps.trace(model, lambda: run_once(model, (64, 64), forward)) == set()
    classes = [shape[1] for tap, trace in taps.traces.items() if 'logits' in tap for shape in trace.shapes]
    assert set(classes) == {dict(RetinaNet=8, FCN=11, cascade=11, ResNet=10, stacked=10, ViT=10, ViG=10).get(name, 4)}


@pytest.mark.parametrize('sides, expected', [
    ((8, 4, 2, 1, 1), [3, 4, 5, 6, 7]),  # of 64 x 64
    ((9, 5, 3, 2, 1), [3, 4, 5, 6, 7]),  # of 72 x 72
    ((38, 19, 10, 5, 3, 1), [3, 4, 5, 6, 7, 8]),  # of 300 x 300
    ((2, 4, 8), [5, 4, 3]),  # of 64 x 64, the deepest first
    ((8, 8), [3, 3]),
])  # fmt: skip
def test_strides_of_small_maps_are_told_apart(sides, expected):
    size = dict(zip((8, 9, 38, 2), (64, 72, 300, 64)))[sides[0]]
    assert log_strides([(1, 3, side, side) for side in sides], (size, size)) == expected


def test_a_neck_is_found_without_running_the_heads():
    scope, config = MODELS['FCOS'][0]
    model, ran = build_model(config, scope), []
    model.bbox_head.conv_cls.register_forward_hook(lambda *_: ran.append(True))
    assert preset_taps(model, 'neck', (64, 64)) == LEVELS
    assert not ran


def test_a_net_without_a_neck():
    with pytest.raises(ValueError, match="has no neck; leave 'neck' out"):
        preset_taps(build_model(segmentor(4), 'mmseg'), 'neck')


# ---- refusals


@pytest.mark.parametrize(
    'name, reason',
    [
        (
            'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
            'region that this net proposes.*compare the backbone .*, the neck',
        ),
        (
            'mmdet::detr/detr_r50_8xb2-150e_coco.py',
            'query of this net.*compare the backbone .*, the neck',
        ),
        ('mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py', 'query of this net'),
    ],
)
def test_scores_of_regions_and_queries_are_refused_before_a_run(name, reason):
    model, scope = read_model_config(name, 'test')
    with (
        torch.device('meta'),
        pytest.raises(ValueError, match=f"has no preset 'logits': its class scores are one row for each {reason}"),
    ):
        preset_taps(build_model(model, scope), 'logits')


def test_a_model_without_a_backbone_is_refused():
    with pytest.raises(ValueError, match="Linear has no preset 'backbone': it has no backbone"):
        preset_taps(nn.Linear(1, 1), 'backbone')


def test_class_scores_of_two_levels_are_read_at_each_call():
    """The smallest number of calls that are several."""
    net = detector(4)
    net['backbone']['out_indices'] = (2, 3)
    net['neck'].update(in_channels=[16, 32], num_outs=2)
    net['bbox_head']['anchor_generator']['strides'] = [16, 32]
    assert preset_taps(build_model(net, 'mmdet'), 'logits', (64, 64)) == dict(logits='bbox_head.retina_cls#*')
