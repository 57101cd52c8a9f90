# FCN on digit scenes, taught by one four times as wide, and the hooks that watch it.
_base_ = ['../../demo/fcn_r18-w8_1xb8-digit-scenes-96x96.py', '../taps/fcn_resnet.py']

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
)
default_hooks = dict(
    distillation=dict(type='lckd_mm.DistillationHook'),
    lipschitz=dict(type='lckd_mm.LipschitzMonitorHook', on=stages, interval=20),
    teacher_check=dict(type='lckd_mm.TeacherCheckHook'),
    prediction=dict(type='lckd_mm.PredictionHook', interval=4),
)
