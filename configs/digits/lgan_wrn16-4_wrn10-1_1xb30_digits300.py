# A Lipschitz critic (LGAN) on the last feature map.
_base_ = '../_base_/pairs/wrn16-4_wrn10-1_digits300.py'

model = dict(
    terms=dict(
        loss_lgan=dict(
            loss=dict(
                type='lckd_mm.AdversarialLoss',
                critic=dict(type='lckd_mm.ConvCritic'),
                loss=dict(type='lckd_mm.LGANLoss', phi='softplus'),
                penalty=dict(type='lckd_mm.GradientPenalty', kind='max', weight=0.1),
            ),
            on='stage3',
            connector=dict(type='lckd_mm.ConvBN'),
            weight=0.01,
        ),
    ),
)
