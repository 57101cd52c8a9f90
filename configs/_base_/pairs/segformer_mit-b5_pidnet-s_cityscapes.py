# SegFormer on MiT-B5 teaches PIDNet-S on Cityscapes. The teacher's maps have a quarter of the image's size, the
# student's an eighth.
_base_ = ['../../cityscapes/pidnet-s_2xb6-120k_cityscapes-1024x1024.py', '../taps/segformer.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model='mmseg::segformer/segformer_mit-b5_8xb1-160k_cityscapes-1024x1024.py',
        # mmsegmentation's model index: mIoU 82.25 on Cityscapes val, single scale.
        checkpoint='https://download.openmmlab.com/mmsegmentation/v0.5/segformer/'
        'segformer_mit-b5_8x1_1024x1024_160k_cityscapes/'
        'segformer_mit-b5_8x1_1024x1024_160k_cityscapes_20211206_072934-87a052ec.pth',
    ),
    student_taps=dict(feature='decode_head.i_head.act', logits='decode_head.conv_seg'),
    teacher_taps=_base_.segformer_taps,
)
