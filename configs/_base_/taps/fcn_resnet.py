# Taps of mmseg's FCN on a ResNet: each stage before its last ReLU (OFD's and LONDON's positions), and the class scores.
fcn_resnet_taps = dict(
    stage1='backbone.layer1@preact',
    stage2='backbone.layer2@preact',
    stage3='backbone.layer3@preact',
    stage4='backbone.layer4@preact',
    logits='decode_head.conv_seg',
)
