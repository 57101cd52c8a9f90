# LONDON: OFD and Lipschitz matching, after the authors' later code (edition C1), whose gradient flows.
#
# Their weight is 2000 / (10000 B) with batches of B = 96; absolute gaps; the student's connected map is multiplied with
# the next raw one.
_base_ = './ofd_resnet50_mobilenetv1_8xb32_in1k.py'

model = dict(
    terms=dict(
        loss_lipschitz=dict(
            loss=dict(type='lckd_mm.LONDONLoss'),
            on=['stage1', 'stage2', 'stage3', 'stage4'],
            connector='loss_ofd',
            weight=2000 / (10000 * 96),
        ),
    ),
)
custom_hooks = [
    dict(type='lckd_mm.LipschitzMonitorHook', interval=100),
]
