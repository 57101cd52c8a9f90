# KD as a partial teacher that keeps all; logs by how much it rescales each sample's gradient.
_base_ = './kd_wrn16-4_wrn10-1_1xb30_digits300.py'

model = dict(terms=dict(loss_kd=dict(loss=dict(type='lckd_mm.PartialKDLoss', kind='full'))))

custom_hooks = [dict(type='lckd_mm.GradientRescaleHook', term='loss_kd', interval=10)]
