# OFD's segmentation recipe: DeepLabV3+ on ResNet-101 teaches the one on ResNet-18.
#
# The teacher uses the batch's statistics, and the first epoch trains the connectors alone. Train the teacher first, by
# its own config: OFD's is not to be had in mmsegmentation's format.
_base_ = [
    './deeplabv3plus_r18-d16_1xb12-44k_voc12aug-513x513.py',
    '../_base_/taps/deeplabv3plus.py',
    '../_base_/terms/deeplabv3plus.py',
]

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model='configs/segmentation/deeplabv3plus_r101-d16_1xb12-44k_voc12aug-513x513.py',
        checkpoint='work_dirs/deeplabv3plus_r101-d16_1xb12-44k_voc12aug-513x513/iter_44100.pth',
        bn='batch',
    ),
    taps=_base_.deeplabv3plus_taps,
    terms=dict(loss_ofd=_base_.ofd_term),
)
custom_hooks = [dict(type='lckd_mm.ConnectorWarmupHook', end=1, by='epoch')]
