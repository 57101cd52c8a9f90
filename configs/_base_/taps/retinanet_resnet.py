# RetinaNet on a ResNet: stages before their last ReLU, the pyramid, and the class scores and boxes of its levels. mmdet
# freezes stem and stage 1 of its detectors, so that stage 1 has no gradient and is left out. The towers of the head are
# four convolutions: what the third one gives, before its ReLU.
retinanet_resnet_taps = dict(
    stage2='backbone.layer2@preact',
    stage3='backbone.layer3@preact',
    stage4='backbone.layer4@preact',
    p3='neck[0]',
    p4='neck[1]',
    p5='neck[2]',
    p6='neck[3]',
    p7='neck[4]',
    logits='bbox_head.retina_cls#*',
    boxes='bbox_head.retina_reg#*',
    cls_tower='bbox_head.cls_convs.2.activate@in#*',
    reg_tower='bbox_head.reg_convs.2.activate@in#*',
)
