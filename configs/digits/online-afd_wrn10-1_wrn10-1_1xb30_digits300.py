# AFD (online, adversarial): two students learn from each other's class scores, and each fools a critic of the features.
_base_ = '../_base_/pairs/wrn10-1_wrn10-1_digits300.py'

model = dict(
    terms=dict(
        loss_kd=dict(
            loss=dict(type='lckd_mm.KDLoss', tau=3.0),
            on='logits',
            weight=1.0,
        ),
        loss_adversarial=dict(
            loss=dict(
                type='lckd_mm.AdversarialLoss',
                critic=dict(type='lckd_mm.ConvCritic'),
                loss=dict(type='lckd_mm.LSGANLoss'),
            ),
            on='stage3',
            connector=dict(type='lckd_mm.ConvBN'),
            weight=1.0,
        ),
    ),
    steps=dict(features=['loss_adversarial']),
)
optim_wrapper = dict(
    _delete_=True,
    constructor='lckd_mm.OnlineOptimWrapperConstructor',
    nets=dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)),
    features=dict(optimizer=dict(type='Adam', lr=1e-4)),
    critics=dict(optimizer=dict(type='Adam', lr=1e-4)),
)
