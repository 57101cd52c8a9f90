# GFL on MobileNetV2 teaches the one on MobileNetV2 of a quarter of the width, on BCCD.
_base_ = ['../../bccd/gfl_m-v2-w25_1xb4-bccd-160x120.py', '../taps/mobilenetv2_detectors.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model='configs/bccd/gfl_m-v2_1xb4-bccd-160x120.py',
        checkpoint='work_dirs/bccd/seed0/gfl-teacher/iter_800.pth',
    ),
    taps=_base_.gfl_mobilenetv2_taps,
    dry_run_size=128,
)
