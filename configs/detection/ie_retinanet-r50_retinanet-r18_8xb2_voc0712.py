# IE: RetinaNet on ResNet50 teaches the one on ResNet18. Half of the channels of its pyramid inherit the teacher's
# factors, the other half moves away from them. The weights of 50 are said to be the authors' of classification
# (unverified).
_base_ = '../_base_/pairs/retinanet-r50_retinanet-r18_voc0712.py'

model = dict(
    terms=dict(
        loss_inherit=dict(
            loss=dict(type='lckd_mm.FTLoss'),
            on=['p3', 'p4', 'p5'],
            connector=[dict(type='lckd_mm.ChannelPart', part='inherit'), dict(type='lckd_mm.FactorEncoder')],
            teacher_connector=dict(type='lckd_mm.AutoEncoder', batches=1000),
            weight=50.0,
        ),
        loss_explore=dict(
            loss=dict(type='lckd_mm.ExploreLoss', loss=dict(type='lckd_mm.FTLoss')),
            on=['p3', 'p4', 'p5'],
            connector=[dict(type='lckd_mm.ChannelPart', part='explore'), dict(type='lckd_mm.FactorEncoder')],
            teacher_connector='loss_inherit',
            weight=50.0,
        ),
    ),
)
