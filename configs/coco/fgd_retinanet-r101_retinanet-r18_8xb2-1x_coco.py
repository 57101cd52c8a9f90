# FGD, by the authors' recipe: RetinaNet on ResNet101 teaches the one on ResNet18 the levels of its pyramid; the
# student's neck and heads begin as the teacher's, and gradients are clipped at 35.
_base_ = ['../_base_/pairs/retinanet-r101_retinanet-r18_coco.py', '../_base_/terms/coco_detectors.py']

model = dict(inherit=['neck', 'bbox_head'], terms=dict(loss_fgd=_base_.fpn_fgd_term))
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
