"""Small nets of the hosts that run in several ways, or on some images alone."""

from run_helpers import detector, preprocessor, segmentor

from lckd_mm.hosts import load_config


def narrow(node, sizes):
    """A config with other widths: each of these numbers in it is replaced."""
    if isinstance(node, dict):
        return {key: narrow(value, sizes) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return type(node)(narrow(value, sizes) for value in node)
    return sizes.get(node, node) if type(node) is int else node


MASKED = dict(
    mmseg='mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
    mmdet='mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
)


def mask2former(layers=1, host='mmseg', width=256, classes=3, queries=5):
    """Mask2Former on a narrow ResNet-18, of either host."""
    cfg = load_config(MASKED[host]).model.to_dict()
    if width != 256:
        cfg = narrow(cfg, {256: width, 128: width // 2, 1024: 16, 2048: 16, 32: 4, 12544: 50})
    cfg['backbone'] = dict(
        type='ResNet', depth=18, base_channels=4, stem_channels=4, out_indices=(0, 1, 2, 3), norm_cfg=dict(type='BN')
    )
    head = cfg['decode_head' if host == 'mmseg' else 'panoptic_head']
    head.update(in_channels=[4, 8, 16, 32], strides=[4, 8, 16, 32], num_queries=queries)
    head['loss_cls']['class_weight'] = [1.0] * classes + [0.1]
    head['pixel_decoder']['encoder']['num_layers'] = head['transformer_decoder']['num_layers'] = layers
    if host == 'mmseg':
        head['num_classes'] = classes
        cfg['data_preprocessor']['size'] = (64, 64)
    else:
        for part in (head, cfg['panoptic_fusion_head']):
            part.update(num_things_classes=classes, num_stuff_classes=0)
        cfg['data_preprocessor'] = preprocessor('DetDataPreprocessor', pad_size_divisor=32, pad_mask=True)
    return cfg


def pidnet():
    cfg = load_config('mmseg::pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py').model
    cfg.backbone.update(channels=8, ppm_channels=8, init_cfg=None, norm_cfg=dict(type='BN'))
    cfg.decode_head.update(in_channels=32, channels=16, norm_cfg=dict(type='BN'))
    cfg.data_preprocessor.size = (64, 64)
    return cfg.to_dict()


def dino(classes=4):
    cfg = load_config('mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py').model
    cfg.backbone = dict(type='ResNet', depth=18, base_channels=4, stem_channels=4, out_indices=(1, 2, 3))
    cfg.neck.in_channels = [8, 16, 32]
    cfg.num_queries, cfg.bbox_head.num_classes = 20, classes
    for part in ('encoder', 'decoder'):
        cfg[part].num_layers = 1
        cfg[part].layer_cfg.ffn_cfg.feedforward_channels = 16
    return cfg.to_dict()


def carafe(width=8):
    net = detector(width)
    return net | dict(neck=dict(net['neck'], type='FPN_CARAFE', start_level=0, end_level=-1))


def of_one_size(size=96, classes=4):
    """BEiT, whose table of positions fits images of 96 x 96 alone; ``size`` is its preprocessor's."""
    net = segmentor(4, classes=classes, size=size)
    del net['auxiliary_head']
    net['backbone'] = dict(
        type='BEiT', img_size=(96, 96), patch_size=16, embed_dims=16, num_layers=1, num_heads=2, mlp_ratio=1,
        out_indices=(0,),
    )  # fmt: skip
    net['decode_head'].update(in_channels=16, in_index=0)
    return net


def rcnn(name='faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', width=16, classes=10):
    """A two-stage detector of mmdet, narrow; widths of the pyramid and of the heads follow ``width``."""
    model = load_config(f'mmdet::{name}').model
    model.backbone.update(depth=18, base_channels=8, stem_channels=8, frozen_stages=-1, init_cfg=None)
    model.neck.update(in_channels=[8, 16, 32, 64], out_channels=width)
    model.rpn_head.update(in_channels=width, feat_channels=width)
    roi = model.roi_head
    heads = roi.bbox_head
    for head in heads if isinstance(heads, list) else [heads]:
        head.update(in_channels=width, fc_out_channels=width, num_classes=classes)
    roi.bbox_roi_extractor.out_channels = width
    if 'mask_head' in roi:
        roi.mask_roi_extractor.out_channels = width
        roi.mask_head.update(in_channels=width, conv_out_channels=width, num_convs=1, num_classes=classes)
    return model.to_dict()


def solov2(width=8, classes=10):
    model = load_config('mmdet::solov2/solov2_r50_fpn_1x_coco.py').model
    model.backbone.update(depth=18, base_channels=width, stem_channels=width, init_cfg=None)
    model.neck.update(in_channels=[width, 2 * width, 4 * width, 8 * width], out_channels=8)
    # Its towers normalise 32 groups of channels.
    model.mask_head.update(num_classes=classes, in_channels=8, feat_channels=32, stacked_convs=1)
    model.mask_head.mask_feature_head.update(feat_channels=32, out_channels=32)
    return model.to_dict()


def rtmdet_ins(width=8, classes=10):
    """Its pyramid is as wide as ``width``."""
    model = load_config('mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py').model
    norm = dict(type='BN')
    model.backbone.update(widen_factor=width / 64, norm_cfg=norm, init_cfg=None)
    widths = [int(c * width / 64) for c in (256, 512, 1024)]
    model.neck.update(in_channels=widths, out_channels=width, num_csp_blocks=1, norm_cfg=norm)
    model.bbox_head.update(num_classes=classes, in_channels=width, feat_channels=width, norm_cfg=norm)
    model.data_preprocessor.batch_augments = None
    return model.to_dict()


def yolact(width=8, classes=10):
    model = load_config('mmdet::yolact/yolact_r50_1xb8-55e_coco.py').model
    model.backbone.update(depth=18, base_channels=width, stem_channels=width, init_cfg=None)
    model.neck.update(in_channels=[width, 2 * width, 4 * width, 8 * width], out_channels=8)
    model.bbox_head.update(num_classes=classes, in_channels=8, feat_channels=8, num_protos=4)
    model.mask_head.update(num_classes=classes, in_channels=8, proto_channels=[8, 8, 8, None, 8, 4], num_protos=4)
    return model.to_dict()
