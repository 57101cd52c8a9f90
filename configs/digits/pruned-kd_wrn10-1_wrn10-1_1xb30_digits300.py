# WRN10-1, trained alone, then pruned to a fifth of its weights, taught by what it was (KD).
_base_ = ['./pruned_wrn10-1_1xb30_digits300.py', '../_base_/taps/wrn.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(model=_base_.model, checkpoint='work_dirs/digits/seed0/alone/epoch_40.pth'),
    taps=_base_.wrn_taps,
    terms=dict(
        loss_kd=dict(
            loss=dict(type='lckd_mm.KDLoss', tau=4.0),
            on='logits',
            weight=1.0,
        ),
    ),
)
val_evaluator = [
    _base_.val_evaluator,
    dict(type='lckd_mm.ClassBiasMetric', reference='teacher', convention='2021'),
]
custom_hooks = [*_base_.custom_hooks, dict(type='lckd_mm.TeacherReferenceHook')]
