# CWD of the class scores, with the paper's temperature and weight: PSPNet-R101-d8 teaches PSPNet-R18-d8.
_base_ = '../_base_/pairs/pspnet_r101-d8_pspnet_r18-d8_voc12aug.py'

model = dict(terms=dict(loss_cwd=dict(loss=dict(type='lckd_mm.CWDLoss', tau=4.0), on='logits', weight=3.0)))
