# Label smoothing, as a term: nothing of the teacher.
_base_ = './kd_wrn16-4_wrn10-1_1xb30_digits300.py'

model = dict(
    terms=dict(loss_kd=dict(loss=dict(type='lckd_mm.PartialKDLoss', kind='label_smoothing', tau=1.0, epsilon=0.1)))
)
