# KD as a partial teacher that keeps all; logs by how much it rescales each sample's gradient.
_base_ = ['./wrn10-1_1xb30_digits300.py', '../_base_/models/wrn16-4_digits.py', '../_base_/taps/wrn.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(model=_base_.wrn16_4, checkpoint='work_dirs/digits/seed0/teacher/epoch_40.pth'),
    taps=_base_.wrn_taps,
    terms=dict(
        loss_kd=dict(
            loss=dict(type='lckd_mm.PartialKDLoss', kind='full', tau=4.0),
            on='logits',
            weight=1.0,
        ),
    ),
)

custom_hooks = [dict(type='lckd_mm.GradientRescaleHook', term='loss_kd', interval=10)]
