# wrn16-4, trained on all digits of the first half, teaches wrn10-1 on 300 of them.
_base_ = ['../../digits/wrn10-1_1xb30_digits300.py', '../models/wrn16-4_digits.py', '../taps/wrn.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(model=_base_.wrn16_4, checkpoint='work_dirs/digits/seed0/teacher/epoch_40.pth'),
    taps=_base_.wrn_taps,
)
