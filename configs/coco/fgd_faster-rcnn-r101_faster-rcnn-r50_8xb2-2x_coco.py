# FGD, by the authors' recipe: Faster R-CNN on ResNet101 teaches the one on ResNet50 the levels of its pyramid; the
# student's neck and heads begin as the teacher's, and gradients are clipped at 35.
_base_ = ['../_base_/pairs/faster-rcnn-r101_faster-rcnn-r50_coco.py', '../_base_/terms/coco_detectors.py']

model = dict(inherit=['neck', 'rpn_head', 'roi_head'], terms=dict(loss_fgd=_base_.two_stage_fgd_term))
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
