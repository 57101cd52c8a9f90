# Mask R-CNN on digit scenes, taught by one four times as wide.
_base_ = ['../../scenes/mask-rcnn_r18-w8_1xb8-digit-scenes-96x96.py', '../taps/scenes.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model='configs/scenes/mask-rcnn_r18-w32_1xb8-digit-scenes-96x96.py',
        checkpoint='work_dirs/mask-rcnn_r18-w32_1xb8-digit-scenes-96x96/iter_1600.pth',
    ),
    taps=dict(masks='roi_head.mask_head.conv_logits', **_base_.two_stage_taps),
    dry_run_size=96,
)
