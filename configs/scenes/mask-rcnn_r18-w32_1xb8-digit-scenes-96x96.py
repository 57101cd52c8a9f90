# The teacher: four times as wide as its student.
_base_ = './mask-rcnn_r18-w8_1xb8-digit-scenes-96x96.py'

model = dict(
    backbone=dict(base_channels=32),
    neck=dict(in_channels=[32, 64, 128], out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256),
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(in_channels=64, conv_out_channels=64),
    ),
)
optim_wrapper = dict(optimizer=dict(lr=0.002))
param_scheduler = [dict(type='OneCycleLR', eta_max=0.002, total_steps=_base_.max_iters, by_epoch=False)]
