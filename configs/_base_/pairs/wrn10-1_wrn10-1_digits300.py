# Two wrn10-1 learn from each other on 300 digits, without a teacher.
_base_ = ['../../digits/wrn10-1_1xb30_digits300.py', '../taps/wrn.py']

model = dict(
    _delete_=True,
    type='lckd_mm.OnlineDistiller',
    nets=[_base_.model, _base_.model],
    taps=_base_.wrn_taps,
)
