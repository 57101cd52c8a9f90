# SSD300 on a ResNet: each stage before its last ReLU (OFD's and LONDON's positions), the six maps, their class scores.
ssd_resnet_taps = dict(
    stage1='backbone.layer1@preact',
    stage2='backbone.layer2@preact',
    stage3='backbone.layer3@preact',
    stage4='backbone.layer4@preact',
    level1='neck[0]',
    level2='neck[1]',
    level3='neck[2]',
    level4='neck[3]',
    level5='neck[4]',
    level6='neck[5]',
    logits1='bbox_head.cls_convs.0',
    logits2='bbox_head.cls_convs.1',
    logits3='bbox_head.cls_convs.2',
    logits4='bbox_head.cls_convs.3',
    logits5='bbox_head.cls_convs.4',
    logits6='bbox_head.cls_convs.5',
)
