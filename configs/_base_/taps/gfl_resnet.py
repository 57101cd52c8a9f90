# GFL on a ResNet: stages before their last ReLU, the pyramid, the class scores of its levels, and the distributions of
# boxes, behind each level's scale. mmdet freezes stem and stage 1 of its detectors, so that stage 1 has no gradient and
# is left out. The towers of the head are four convolutions: what the third one gives, before its ReLU.
gfl_resnet_taps = dict(
    stage2='backbone.layer2@preact',
    stage3='backbone.layer3@preact',
    stage4='backbone.layer4@preact',
    p3='neck[0]',
    p4='neck[1]',
    p5='neck[2]',
    p6='neck[3]',
    p7='neck[4]',
    logits='bbox_head.gfl_cls#*',
    boxes3='bbox_head.scales.0',
    boxes4='bbox_head.scales.1',
    boxes5='bbox_head.scales.2',
    boxes6='bbox_head.scales.3',
    boxes7='bbox_head.scales.4',
    cls_tower='bbox_head.cls_convs.2.activate@in#*',
    reg_tower='bbox_head.reg_convs.2.activate@in#*',
)
