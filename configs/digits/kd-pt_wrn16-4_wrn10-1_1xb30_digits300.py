# KD, of which only the probability of the true class is kept.
_base_ = './kd_wrn16-4_wrn10-1_1xb30_digits300.py'

model = dict(terms=dict(loss_kd=dict(loss=dict(type='lckd_mm.PartialKDLoss', kind='pt'))))
