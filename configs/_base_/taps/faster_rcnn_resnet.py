# Faster R-CNN on a ResNet: stages before their last ReLU, and the pyramid. mmdet freezes stem and stage 1 of its
# detectors, so that stage 1 has no gradient and is left out. The second stage scores proposals, and these are not the
# same boxes in two nets, so that there is no tap of its class scores.
faster_rcnn_resnet_taps = dict(
    stage2='backbone.layer2@preact',
    stage3='backbone.layer3@preact',
    stage4='backbone.layer4@preact',
    p2='neck[0]',
    p3='neck[1]',
    p4='neck[2]',
    p5='neck[3]',
    p6='neck[4]',
)
