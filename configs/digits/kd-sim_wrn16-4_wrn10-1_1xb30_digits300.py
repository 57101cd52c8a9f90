# KD, replaced by how alike the rows of the teacher's logit layer are.
_base_ = './kd_wrn16-4_wrn10-1_1xb30_digits300.py'

model = dict(terms=dict(loss_kd=dict(loss=dict(type='lckd_mm.PartialKDLoss', kind='sim', alpha=0.5, beta=0.3))))
