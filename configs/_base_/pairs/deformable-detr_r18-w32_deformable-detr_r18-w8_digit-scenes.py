# Deformable DETR on digit scenes, taught by one with a backbone four times as wide.
_base_ = ['../../scenes/deformable-detr_r18-w8_1xb8-digit-scenes-96x96.py', '../taps/scenes.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model='configs/scenes/deformable-detr_r18-w32_1xb8-digit-scenes-96x96.py',
        checkpoint='work_dirs/deformable-detr_r18-w32_1xb8-digit-scenes-96x96/iter_2000.pth',
    ),
    taps=_base_.query_taps,
    dry_run_size=96,
)
