# Setting c, LONDON and KD.
_base_ = './lckd_wrn28-4_wrn16-2_1xb128_cifar100.py'

model = dict(
    terms=dict(
        loss_kd=dict(loss=dict(type='lckd_mm.KDLoss', tau=4.0), on='logits', weight=1.0),
    ),
)
