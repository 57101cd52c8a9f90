# Faster R-CNN on ResNet50 teaches the one on ResNet18.
_base_ = ['../../detection/faster-rcnn-r18_8xb2_voc0712.py', '../taps/faster_rcnn_resnet.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model='configs/detection/faster-rcnn-r50_8xb2_voc0712.py',
        checkpoint='work_dirs/faster-rcnn-r50_8xb2_voc0712/epoch_4.pth',
    ),
    taps=_base_.faster_rcnn_resnet_taps,
)
