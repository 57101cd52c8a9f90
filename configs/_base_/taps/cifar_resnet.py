# The output of each stage before its last ReLU.
cifar_resnet_taps = dict(
    stage1='backbone.layer1@preact',
    stage2='backbone.layer2@preact',
    stage3='backbone.layer3@preact',
    logits='head.fc',
)
