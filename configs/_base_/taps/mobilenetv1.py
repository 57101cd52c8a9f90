# OFD's positions: the last BatchNorms of blocks 3, 5, 11 and 13. Three taps where the teacher has three stages.
mobilenetv1_taps = dict(
    stage1='backbone.block3.bn2',
    stage2='backbone.block5.bn2',
    stage3='backbone.block11.bn2',
    stage4='backbone.block13.bn2',
    logits='head.fc',
)
