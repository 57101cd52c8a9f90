# Faster R-CNN on a ResNet: stages before their last ReLU, and the pyramid. mmdet freezes stem and stage 1 of its
# detectors, so that stage 1 has no gradient and is left out. The class scores are of regions, which are the same in
# both nets where a term has regions=True.
faster_rcnn_resnet_taps = dict(
    stage2='backbone.layer2@preact',
    stage3='backbone.layer3@preact',
    stage4='backbone.layer4@preact',
    p2='neck[0]',
    p3='neck[1]',
    p4='neck[2]',
    p5='neck[3]',
    p6='neck[4]',
    scores='roi_head.bbox_head.fc_cls',
)
