# Setting g, LONDON: OFD and Lipschitz matching, after the authors' later code (edition C1), whose gradient flows.
#
# Their weight is alpha / 200 with alpha = 1 (ours: none is published); absolute gaps;
# the student's connected map is multiplied with the next raw one.
_base_ = './ofd_wrn28-4_mobilenetv1_1xb128_cifar100.py'

model = dict(
    terms=dict(
        loss_lipschitz=dict(
            loss=dict(type='lckd_mm.LONDONLoss'),
            on=['stage1', 'stage2', 'stage3'],
            connector='loss_ofd',
            weight=0.005,
        ),
    ),
)
custom_hooks = [
    dict(type='lckd_mm.LipschitzMonitorHook', interval=100),
]
