# LONDON and KD.
_base_ = './lckd_resnet152_resnet50_8xb32_in1k.py'

model = dict(
    terms=dict(
        loss_kd=dict(loss=dict(type='lckd_mm.KDLoss', tau=4.0), on='logits', weight=1.0),
    ),
)
