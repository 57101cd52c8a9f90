# DINOv2 (ViT-S/14) teaches RTMDet-s: the directions of its patch tokens, at the deepest level of the backbone.
_base_ = ['mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py', '../_base_/terms/foundation.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=_base_.dinov2_teacher,
    student_taps=dict(deepest='backbone[2]'),
    teacher_taps=_base_.dinov2_taps,
    terms=dict(loss_foundation=_base_.foundation_term),
)
