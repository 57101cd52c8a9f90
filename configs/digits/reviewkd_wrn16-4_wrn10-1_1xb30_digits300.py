# ReviewKD, with its authors' weight of ResNet32x4 to ResNet8x4 on CIFAR-100; without their warm-up.
_base_ = '../_base_/pairs/wrn16-4_wrn10-1_digits300.py'

model = dict(
    terms=dict(
        loss_review=dict(
            loss=dict(type='lckd_mm.ReviewKDLoss'),
            on=['stage1', 'stage2', 'stage3', 'embedding'],
            weight=5.0,
        ),
    ),
)
