# MGD of the backbones' last stage, and CWD of the class scores beside it, as its authors have: PSPNet-R101-d8 teaches
# PSPNet-R18-d8.
_base_ = ['../_base_/pairs/pspnet_r101-d8_pspnet_r18-d8_cityscapes.py', '../_base_/terms/segmentors.py']

model = dict(taps=dict(last='backbone.layer4'), terms=dict(loss_mgd=_base_.mgd_term, loss_cwd=_base_.mgd_cwd_term))
