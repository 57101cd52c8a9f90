# MGD, by the authors' recipe of two-stage detectors: Faster R-CNN on ResNet101 teaches the one on ResNet50 four levels
# of its pyramid, which a small net generates from about half of the student's positions; gradients are clipped at 35.
_base_ = ['../_base_/pairs/faster-rcnn-r101_faster-rcnn-r50_coco.py', '../_base_/terms/coco_detectors.py']

model = dict(terms=dict(loss_mgd=_base_.two_stage_mgd_term))
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
