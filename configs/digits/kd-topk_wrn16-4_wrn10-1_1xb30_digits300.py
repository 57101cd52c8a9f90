# KD, of which the three largest probabilities are kept: a quarter of the classes.
_base_ = ['./wrn10-1_1xb30_digits300.py', '../_base_/models/wrn16-4_digits.py', '../_base_/taps/wrn.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(model=_base_.wrn16_4, checkpoint='work_dirs/digits/seed0/teacher/epoch_40.pth'),
    taps=_base_.wrn_taps,
    terms=dict(
        loss_kd=dict(
            loss=dict(type='lckd_mm.PartialKDLoss', kind='topk', tau=4.0, k=3),
            on='logits',
            weight=1.0,
        ),
    ),
)
