# FT.
_base_ = '../_base_/pairs/wrn16-4_wrn10-1_digits300.py'

model = dict(
    terms=dict(
        loss_ft=dict(
            loss=dict(type='lckd_mm.FTLoss'),
            on='stage3',
            connector=dict(type='lckd_mm.Translator'),
            teacher_connector=dict(type='lckd_mm.Paraphraser', batches=300),
            weight=20.0,
        ),
    ),
)
