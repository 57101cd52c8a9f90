# PKD: RTMDet-l teaches RTMDet-s its pyramid, until the strong augmentation ends.
_base_ = ['../_base_/pairs/rtmdet-l_rtmdet-s_coco.py', '../_base_/terms/coco_detectors.py']

model = dict(terms=dict(loss_pkd=_base_.rtmdet_pkd_term))
custom_hooks = [
    *_base_.custom_hooks,
    dict(type='lckd_mm.LossWeightHook', term='loss_pkd', schedule='stop', by='epoch', end=280),
]
