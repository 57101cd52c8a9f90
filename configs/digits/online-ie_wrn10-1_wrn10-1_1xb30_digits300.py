# IE in its mutual form: two students learn together, each from the other's factor; their auto-encoders learn along.
_base_ = ['./wrn10-1_1xb30_digits300.py', '../_base_/taps/wrn.py']

model = dict(
    _delete_=True,
    type='lckd_mm.OnlineDistiller',
    nets=[_base_.model, _base_.model],
    taps=_base_.wrn_taps,
    terms=dict(
        loss_autoencoder=dict(
            loss=dict(type='lckd_mm.ReconstructionLoss'),
            on='stage3',
            teacher_connector=dict(type='lckd_mm.AutoEncoder', online=True),
            weight=1.0,
        ),
        loss_inherit=dict(
            loss=dict(type='lckd_mm.FTLoss'),
            on='stage3',
            connector=dict(type='lckd_mm.ChannelPart', part='inherit', connector=dict(type='lckd_mm.FactorEncoder')),
            teacher_connector='loss_autoencoder',
            weight=50.0,
        ),
        loss_explore=dict(
            loss=dict(type='lckd_mm.ExploreLoss', loss=dict(type='lckd_mm.FTLoss')),
            on='stage3',
            connector=dict(type='lckd_mm.ChannelPart', part='explore', connector=dict(type='lckd_mm.FactorEncoder')),
            teacher_connector='loss_autoencoder',
            weight=50.0,
        ),
    ),
)
