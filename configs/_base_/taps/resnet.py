# Each stage before its last ReLU (OFD's and LONDON's positions), and the class scores.
resnet_taps = dict(
    stage1='backbone.layer1@preact',
    stage2='backbone.layer2@preact',
    stage3='backbone.layer3@preact',
    stage4='backbone.layer4@preact',
    logits='head.fc',
)
