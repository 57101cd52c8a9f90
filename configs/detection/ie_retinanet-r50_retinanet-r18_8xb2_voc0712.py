# IE: RetinaNet on ResNet50 teaches the one on ResNet18. Half of the channels of its pyramid inherit the teacher's
# factors, the other half moves away from them. The weights of 50 are said to be the authors' of classification
# (unverified).
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
        loss_inherit=dict(
            loss=dict(type='lckd_mm.FTLoss'),
            on=['p3', 'p4', 'p5'],
            connector=dict(type='lckd_mm.ChannelPart', part='inherit', connector=dict(type='lckd_mm.FactorEncoder')),
            teacher_connector=dict(type='lckd_mm.AutoEncoder', batches=1000),
            weight=50.0,
        ),
        loss_explore=dict(
            loss=dict(type='lckd_mm.ExploreLoss', loss=dict(type='lckd_mm.FTLoss')),
            on=['p3', 'p4', 'p5'],
            connector=dict(type='lckd_mm.ChannelPart', part='explore', connector=dict(type='lckd_mm.FactorEncoder')),
            teacher_connector='loss_inherit',
            weight=50.0,
        ),
    ),
)
