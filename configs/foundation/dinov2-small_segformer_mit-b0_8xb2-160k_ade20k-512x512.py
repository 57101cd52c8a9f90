# DINOv2 (ViT-S/14) teaches SegFormer on MiT-B0: the directions of its patch tokens, at stride 32 of the student's.
_base_ = ['mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py', '../_base_/terms/foundation.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model='mmpretrain::dinov2/vit-small-p14_dinov2-pre_headless.py',
        checkpoint='https://download.openmmlab.com/mmpretrain/v1.0/dinov2/'
        'vit-small-p14_dinov2-pre_3rdparty_20230426-5641ca5a.pth',
        # A patch of 14 pixels of its images is one of 32 of the student's.
        scale=14 / 32,
        patch=14,
        prefix=1,
    ),
    student_taps=dict(deepest='backbone[3]'),
    teacher_taps=dict(tokens='backbone.ln1'),
    terms=dict(loss_foundation=_base_.foundation_term),
)
