# OFD's six positions in DeepLabV3+, before a ReLU: the four stages, the end of the ASPP, the end of the decoder.
deeplabv3plus_taps = dict(
    stage1='backbone.layer1@preact',
    stage2='backbone.layer2@preact',
    stage3='backbone.layer3@preact',
    stage4='backbone.layer4@preact',
    aspp='decode_head.bottleneck.activate@in',
    decoder='decode_head.sep_bottleneck.1.pointwise_conv.activate@in',
    logits='decode_head.conv_seg',
)
# In MobileNetV2 OFD reads the expansions that end a resolution, and the last linear bottleneck: 144, 192, 576 and 320
# channels.
deeplabv3plus_mobilenetv2_taps = dict(
    stage1='backbone.layer3.0.conv.0.activate@in',
    stage2='backbone.layer4.0.conv.0.activate@in',
    stage3='backbone.layer6.0.conv.0.activate@in',
    stage4='backbone.layer7.0.conv.2.bn',
    aspp='decode_head.bottleneck.activate@in',
    decoder='decode_head.sep_bottleneck.1.pointwise_conv.activate@in',
    logits='decode_head.conv_seg',
)
