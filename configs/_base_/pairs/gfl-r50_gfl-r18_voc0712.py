# GFL on ResNet50 teaches the one on ResNet18.
_base_ = ['../../detection/gfl-r18_8xb2_voc0712.py', '../taps/gfl_resnet.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model='configs/detection/gfl-r50_8xb2_voc0712.py',
        checkpoint='work_dirs/gfl-r50_8xb2_voc0712/epoch_4.pth',
    ),
    taps=_base_.gfl_resnet_taps,
)
