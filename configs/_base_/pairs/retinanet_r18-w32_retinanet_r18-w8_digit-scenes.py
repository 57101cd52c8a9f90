# RetinaNet on digit scenes, taught by one four times as wide, and the hooks that watch it.
_base_ = ['../../demo/retinanet_r18-w8_1xb8-digit-scenes-96x96.py', '../taps/retinanet_demo.py']

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
)
default_hooks = dict(
    distillation=dict(type='lckd_mm.DistillationHook'),
    lipschitz=dict(type='lckd_mm.LipschitzMonitorHook', on=_base_.stages, interval=20),
    teacher_check=dict(type='lckd_mm.TeacherCheckHook'),
    prediction=dict(type='lckd_mm.PredictionHook', interval=4),
)
