# Taps of mmseg's PSPNet on a ResNet: each stage before its last ReLU, the head's features, and the class scores.
pspnet_resnet_taps = dict(
    stage1='backbone.layer1@preact',
    stage2='backbone.layer2@preact',
    stage3='backbone.layer3@preact',
    stage4='backbone.layer4@preact',
    decoder='decode_head.bottleneck.activate@in',
    logits='decode_head.conv_seg',
)
