# OFD: PSPNet-R101-d8 teaches PSPNet-R18-d8 by its four stages before a ReLU; the weight is OFD's own of segmentation.
_base_ = [
    '../_base_/pairs/pspnet_r101-d8_pspnet_r18-d8_cityscapes.py',
    '../_base_/terms/segmentation.py',
]

model = dict(terms=dict(loss_ofd=_base_.ofd_term))
