# RTMDet: the pyramid, and the class scores of its levels, each of a layer of its own. Its activations are SiLU, so that
# there are no stages before a ReLU.
rtmdet_taps = dict(
    p3='neck[0]',
    p4='neck[1]',
    p5='neck[2]',
    logits1='bbox_head.rtm_cls.0',
    logits2='bbox_head.rtm_cls.1',
    logits3='bbox_head.rtm_cls.2',
)
