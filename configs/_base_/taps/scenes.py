# The pyramid, and the class scores and box offsets of regions; of the query detectors what the decoder reads.
two_stage_taps = dict(
    p2='neck[0]',
    p3='neck[1]',
    p4='neck[2]',
    scores='roi_head.bbox_head.fc_cls',
    offsets='roi_head.bbox_head.fc_reg',
)
query_taps = dict(p3='neck[0]', p4='neck[1]', memory='encoder')
