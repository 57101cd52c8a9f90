# SegFormer on MiT-B4 teaches the one on MiT-B0 on ADE20K.
_base_ = ['mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py', '../taps/segformer.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model='mmseg::segformer/segformer_mit-b4_8xb2-160k_ade20k-512x512.py',
        # mmsegmentation's model index: mIoU 48.46 on ADE20K val, single scale.
        checkpoint='https://download.openmmlab.com/mmsegmentation/v0.5/segformer/segformer_mit-b4_512x512_160k_ade20k/'
        'segformer_mit-b4_512x512_160k_ade20k_20210728_183055-7f509d7d.pth',
    ),
    taps=_base_.segformer_taps,
)
