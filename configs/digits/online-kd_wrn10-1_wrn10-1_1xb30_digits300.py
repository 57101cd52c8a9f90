# Two students learn together, each from the other's class scores; no teacher. AFD without its adversarial part.
_base_ = ['./wrn10-1_1xb30_digits300.py', '../_base_/taps/wrn.py']

model = dict(
    _delete_=True,
    type='lckd_mm.OnlineDistiller',
    nets=[_base_.model, _base_.model],
    taps=_base_.wrn_taps,
    terms=dict(
        loss_kd=dict(
            loss=dict(type='lckd_mm.KDLoss', tau=3.0),
            on='logits',
            weight=1.0,
        ),
    ),
)
