# Label smoothing, as a term: nothing of the teacher.
_base_ = ['./wrn10-1_1xb30_digits300.py', '../_base_/models/wrn16-4_digits.py', '../_base_/taps/wrn.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(model=_base_.wrn16_4, checkpoint='work_dirs/digits/seed0/teacher/epoch_40.pth'),
    taps=_base_.wrn_taps,
    terms=dict(
        loss_kd=dict(
            loss=dict(type='lckd_mm.PartialKDLoss', kind='label_smoothing', tau=1.0, epsilon=0.1),
            on='logits',
            weight=1.0,
        ),
    ),
)
