# CWD of standardised maps (mmyolo's recipe): RTMDet-l teaches RTMDet-s until strong augmentation ends.
_base_ = ['../_base_/pairs/rtmdet-l_rtmdet-s_coco.py', '../_base_/terms/coco_detectors.py']

model = dict(terms=dict(loss_cwd=_base_.rtmdet_cwd_term))
custom_hooks = [
    *_base_.custom_hooks,
    dict(type='lckd_mm.LossWeightHook', term='loss_cwd', schedule='stop', by='epoch', end=280),
]
