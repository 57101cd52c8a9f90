# Detectors on mmdet's MobileNetV2: OFD's positions (the expansions that end a resolution, before their ReLU6, and the
# last linear bottleneck), the levels of the pyramid, class scores and boxes of all levels, and what the first of the
# two convolutions of each tower of the head gives, before its ReLU.
_backbone = dict(
    stage1='backbone.layer3.0.expand_conv.activate@in',
    stage2='backbone.layer4.0.expand_conv.activate@in',
    stage3='backbone.layer6.0.expand_conv.activate@in',
    stage4='backbone.layer7.0.linear_conv.bn',
    p2='neck[0]',
    p3='neck[1]',
    p4='neck[2]',
    p5='neck[3]',
    cls_tower='bbox_head.cls_convs.0.activate@in#*',
    reg_tower='bbox_head.reg_convs.0.activate@in#*',
)
retinanet_mobilenetv2_taps = dict(logits='bbox_head.retina_cls#*', boxes='bbox_head.retina_reg#*', **_backbone)
gfl_mobilenetv2_taps = dict(
    logits='bbox_head.gfl_cls#*',
    boxes2='bbox_head.scales.0',
    boxes3='bbox_head.scales.1',
    boxes4='bbox_head.scales.2',
    boxes5='bbox_head.scales.3',
    **_backbone,
)
