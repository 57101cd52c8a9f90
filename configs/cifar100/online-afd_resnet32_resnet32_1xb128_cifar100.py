# AFD (online, adversarial): two resnet32 learn from each other's class scores, and each fools a critic that tells its
# last feature map from the other's. Adam's learning rate and the critic's widths are from memory or ours: not checked
# against the paper. The paper's figures: 69.38 alone, 73.38 without the adversarial part, 74.03 with it.
_base_ = './online-kd_resnet32_resnet32_1xb128_cifar100.py'

model = dict(
    terms=dict(
        loss_adversarial=dict(
            loss=dict(
                type='lckd_mm.AdversarialLoss',
                critic=dict(type='lckd_mm.ConvCritic'),
                loss=dict(type='lckd_mm.LSGANLoss'),
            ),
            on='stage3',
            weight=1.0,
        ),
    ),
    steps=dict(features=['loss_adversarial']),
)
optim_wrapper = dict(
    _delete_=True,
    constructor='lckd_mm.OnlineOptimWrapperConstructor',
    nets=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)),
    features=dict(optimizer=dict(type='Adam', lr=2e-5)),
    critics=dict(optimizer=dict(type='Adam', lr=2e-5)),
)
# Adam's learning rate stays.
param_scheduler = dict(
    _delete_=True,
    nets=[dict(type='MultiStepLR', by_epoch=True, milestones=[150, 225], gamma=0.1)],
    features=[],
    critics=[],
)
