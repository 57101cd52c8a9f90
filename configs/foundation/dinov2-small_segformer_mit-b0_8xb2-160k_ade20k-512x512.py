# DINOv2 (ViT-S/14) teaches SegFormer on MiT-B0: the directions of its patch tokens, at stride 32 of the student's.
_base_ = ['mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py', '../_base_/terms/foundation.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=_base_.dinov2_teacher,
    student_taps=dict(deepest='backbone[3]'),
    teacher_taps=_base_.dinov2_taps,
    terms=dict(loss_foundation=_base_.foundation_term),
)
