# KD, and Lipschitz matching of the four stages; the weight is ours.
_base_ = './kd_pspnet_r101-d8_pspnet_r18-d8_4xb4-20k_voc12aug-512x512.py'

model = dict(
    terms=dict(
        loss_lipschitz=dict(
            loss=dict(type='lckd_mm.LipschitzLoss', gap='log'),
            on=['stage1', 'stage2', 'stage3', 'stage4'],
            weight=0.1,
        ),
    ),
)
custom_hooks = [dict(type='lckd_mm.LipschitzMonitorHook', interval=50)]
