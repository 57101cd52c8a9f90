# SSD300 on MobileNetV1, where it differs from SSD300 on a ResNet: OFD's positions, the last BatchNorms of four blocks.
ssd_mobilenetv1_stages = dict(
    stage1='backbone.block3.bn2',
    stage2='backbone.block5.bn2',
    stage3='backbone.block11.bn2',
    stage4='backbone.block13.bn2',
)
