# RTMDet: the pyramid, its last convolutions before their BatchNorm, and the class scores of its levels, each of a layer
# of its own. Its activations are SiLU, so that there are no stages before a ReLU.
rtmdet_taps = dict(
    p3='neck[0]',
    p4='neck[1]',
    p5='neck[2]',
    conv3='neck.out_convs.0.conv',
    conv4='neck.out_convs.1.conv',
    conv5='neck.out_convs.2.conv',
    logits1='bbox_head.rtm_cls.0',
    logits2='bbox_head.rtm_cls.1',
    logits3='bbox_head.rtm_cls.2',
)
