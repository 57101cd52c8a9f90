# Mask2Former on Swin-S teaches the one on ResNet50 on Cityscapes.
_base_ = ['mmseg::mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py', '../taps/mask2former.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model='mmseg::mask2former/mask2former_swin-s_8xb2-90k_cityscapes-512x1024.py',
        # mmsegmentation's model index: mIoU 82.57 on Cityscapes val, single scale.
        checkpoint='https://download.openmmlab.com/mmsegmentation/v0.5/mask2former/'
        'mask2former_swin-s_8xb2-90k_cityscapes-512x1024/'
        'mask2former_swin-s_8xb2-90k_cityscapes-512x1024_20221127_143802-9ab177f6.pth',
    ),
    taps=_base_.mask2former_taps,
)
