# The demo's student with KD on the class scores.
_base_ = ['./fcn_r18-w8_1xb8-digit-scenes-96x96.py', '../_base_/taps/fcn_resnet.py']

kd_term = dict(loss=dict(type='lckd_mm.KDLoss', tau=2.0), on='logits', weight=1.0)
stages = ['stage1', 'stage2', 'stage3', 'stage4']
model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model='configs/demo/fcn_r18-w32_1xb8-digit-scenes-96x96.py',
        checkpoint='work_dirs/demo/seed0/teacher/iter_800.pth',
    ),
    taps=_base_.fcn_resnet_taps,
    terms=dict(loss_kd=kd_term),
)
default_hooks = dict(
    distillation=dict(type='lckd_mm.DistillationHook'),
    lipschitz=dict(type='lckd_mm.LipschitzMonitorHook', on=stages, interval=20),
    teacher_check=dict(type='lckd_mm.TeacherCheckHook'),
    prediction=dict(type='lckd_mm.PredictionHook', interval=4),
)
