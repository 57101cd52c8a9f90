# KD and CWD on class scores with lckd_mm: the student's baseline config plus distillation.
_base_ = '../../../configs/demo/fcn_r18-w8_1xb8-digit-scenes-96x96.py'

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model='configs/demo/fcn_r18-w32_1xb8-digit-scenes-96x96.py',
        checkpoint='work_dirs/demo/seed0/teacher/iter_800.pth',
    ),
    taps=dict(logits='decode_head.conv_seg'),
    terms=dict(
        loss_kd=dict(loss=dict(type='lckd_mm.KDLoss', tau=2.0), on='logits', weight=1.0),
        loss_cwd=dict(loss=dict(type='lckd_mm.CWDLoss', tau=4.0), on='logits', weight=3.0),
    ),
)
