# What the mask decoder of mmseg's Mask2Former reads: the mask features, and three levels from coarse to fine. In mmdet
# the head is `panoptic_head`.
mask2former_taps = dict(
    mask='decode_head.pixel_decoder[0]',
    memory0='decode_head.pixel_decoder[1][0]',
    memory1='decode_head.pixel_decoder[1][1]',
    memory2='decode_head.pixel_decoder[1][2]',
)
