# IE over AT: half of each stage's channels inherit the teacher's attention, the other half looks elsewhere.
_base_ = ['./wrn10-1_1xb30_digits300.py', '../_base_/models/wrn16-4_digits.py', '../_base_/taps/wrn.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(model=_base_.wrn16_4, checkpoint='work_dirs/digits/seed0/teacher/epoch_40.pth'),
    taps=_base_.wrn_taps,
    terms=dict(
        loss_inherit=dict(
            loss=dict(type='lckd_mm.ATLoss'),
            on=['stage1', 'stage2', 'stage3'],
            connector=dict(type='lckd_mm.ChannelPart', part='inherit'),
            weight=1000.0,
        ),
        loss_explore=dict(
            loss=dict(type='lckd_mm.ExploreLoss', loss=dict(type='lckd_mm.ATLoss')),
            on=['stage1', 'stage2', 'stage3'],
            connector=dict(type='lckd_mm.ChannelPart', part='explore'),
            weight=10.0,
        ),
    ),
)
