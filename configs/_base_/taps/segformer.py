# mmseg's SegFormer: the map before the class scores, and these. Its encoder has neither BatchNorm nor ReLU.
segformer_taps = dict(feature='decode_head.fusion_conv', logits='decode_head.conv_seg')
