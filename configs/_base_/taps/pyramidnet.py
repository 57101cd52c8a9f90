# OFD's positions: in bottleneck nets the second BatchNorm of the next group's first block, in basic ones the first.
pyramidnet_taps = dict(
    stage1='backbone.layer2.0.bn1',
    stage2='backbone.layer3.0.bn1',
    stage3='backbone.bn_final',
    logits='head.fc',
)
pyramidnet_bottleneck_taps = dict(
    stage1='backbone.layer2.0.bn2',
    stage2='backbone.layer3.0.bn2',
    stage3='backbone.bn_final',
    logits='head.fc',
)
