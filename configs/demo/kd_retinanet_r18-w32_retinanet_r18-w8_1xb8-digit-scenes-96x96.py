# The detection demo's student with KD on the class scores of all levels.
_base_ = ['./retinanet_r18-w8_1xb8-digit-scenes-96x96.py', '../_base_/taps/retinanet_demo.py']

# Next to all positions are background: the mean over them is small.
kd_term = dict(loss=dict(type='lckd_mm.KDLoss', tau=2.0), on='logits', weight=20.0)
model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model='configs/demo/retinanet_r18-w32_1xb8-digit-scenes-96x96.py',
        checkpoint='work_dirs/demo-det/seed0/teacher/iter_1600.pth',
    ),
    taps=_base_.retinanet_taps,
    dry_run_size=96,
    terms=dict(loss_kd=kd_term),
)
default_hooks = dict(
    distillation=dict(type='lckd_mm.DistillationHook'),
    lipschitz=dict(type='lckd_mm.LipschitzMonitorHook', on=_base_.stages, interval=20),
    teacher_check=dict(type='lckd_mm.TeacherCheckHook'),
    prediction=dict(type='lckd_mm.PredictionHook', interval=4),
)
