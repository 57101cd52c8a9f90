# FGD: RetinaNet on ResNet50 teaches the one on ResNet18 the maps of its pyramid, on and around the objects.
# Weights and temperature are those of the authors' RetinaNet on COCO.
_base_ = ['./retinanet-r18_8xb2_voc0712.py', '../_base_/taps/retinanet_resnet.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model='mmdet::pascal_voc/retinanet_r50_fpn_1x_voc0712.py',
        checkpoint='work_dirs/retinanet_r50_fpn_1x_voc0712/epoch_4.pth',
    ),
    taps=_base_.retinanet_resnet_taps,
    terms=dict(
        loss_fgd=dict(
            loss=dict(type='lckd_mm.FGDLoss', alpha=1e-3, beta=5e-4, gamma=5e-4, lam=5e-6, temperature=0.5),
            on=['p3', 'p4', 'p5', 'p6', 'p7'],
            weight=1.0,
        ),
    ),
)
