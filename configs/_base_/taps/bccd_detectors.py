# Detectors of BCCD: the stages at OFD's positions, the levels of the pyramid, class scores and boxes of all levels, and
# what the first of the two convolutions of each tower of the head gives, before its ReLU.
_head = dict(
    p2='neck[0]',
    p3='neck[1]',
    p4='neck[2]',
    p5='neck[3]',
    cls_tower='bbox_head.cls_convs.0.activate@in#*',
    reg_tower='bbox_head.reg_convs.0.activate@in#*',
)
# MobileNetV2: the expansions that end a resolution, before their ReLU6, and the last linear bottleneck.
_mobilenetv2 = dict(
    stage1='backbone.layer3.0.expand_conv.activate@in',
    stage2='backbone.layer4.0.expand_conv.activate@in',
    stage3='backbone.layer6.0.expand_conv.activate@in',
    stage4='backbone.layer7.0.linear_conv.bn',
    **_head,
)
# ResNet: before the last ReLU of a stage.
_resnet = dict(
    stage1='backbone.layer1@preact',
    stage2='backbone.layer2@preact',
    stage3='backbone.layer3@preact',
    stage4='backbone.layer4@preact',
    **_head,
)
_retinanet = dict(logits='bbox_head.retina_cls#*', boxes='bbox_head.retina_reg#*')
_gfl = dict(
    logits='bbox_head.gfl_cls#*',
    boxes2='bbox_head.scales.0',
    boxes3='bbox_head.scales.1',
    boxes4='bbox_head.scales.2',
    boxes5='bbox_head.scales.3',
)
retinanet_mobilenetv2_taps = dict(_retinanet, **_mobilenetv2)
retinanet_resnet_taps = dict(_retinanet, **_resnet)
gfl_mobilenetv2_taps = dict(_gfl, **_mobilenetv2)
gfl_resnet_taps = dict(_gfl, **_resnet)
