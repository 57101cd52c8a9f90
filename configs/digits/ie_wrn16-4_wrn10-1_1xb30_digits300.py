# IE: half of the last stage's channels inherit the teacher's factor, the other half moves away from it.
_base_ = ['./wrn10-1_1xb30_digits300.py', '../_base_/models/wrn16-4_digits.py', '../_base_/taps/wrn.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(model=_base_.wrn16_4, checkpoint='work_dirs/digits/seed0/teacher/epoch_40.pth'),
    taps=_base_.wrn_taps,
    terms=dict(
        loss_inherit=dict(
            loss=dict(type='lckd_mm.FTLoss'),
            on='stage3',
            connector=dict(type='lckd_mm.ChannelPart', part='inherit', connector=dict(type='lckd_mm.FactorEncoder')),
            teacher_connector=dict(type='lckd_mm.AutoEncoder', batches=300),
            weight=50.0,
        ),
        loss_explore=dict(
            loss=dict(type='lckd_mm.ExploreLoss', loss=dict(type='lckd_mm.FTLoss')),
            on='stage3',
            connector=dict(type='lckd_mm.ChannelPart', part='explore', connector=dict(type='lckd_mm.FactorEncoder')),
            teacher_connector='loss_inherit',
            weight=50.0,
        ),
    ),
)
