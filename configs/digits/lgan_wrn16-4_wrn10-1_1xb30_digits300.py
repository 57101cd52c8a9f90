# A Lipschitz critic (LGAN) on the last feature map.
_base_ = ['./wrn10-1_1xb30_digits300.py', '../_base_/models/wrn16-4_digits.py', '../_base_/taps/wrn.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(model=_base_.wrn16_4, checkpoint='work_dirs/digits/seed0/teacher/epoch_40.pth'),
    taps=_base_.wrn_taps,
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
