# CWD of the class scores, with the paper's temperature and weight: FCN-R101-d8 teaches FCN-R18-d8.
_base_ = '../_base_/pairs/fcn_r101-d8_fcn_r18-d8_voc12aug.py'

model = dict(terms=dict(loss_cwd=dict(loss=dict(type='lckd_mm.CWDLoss', tau=4.0), on='logits', weight=3.0)))
