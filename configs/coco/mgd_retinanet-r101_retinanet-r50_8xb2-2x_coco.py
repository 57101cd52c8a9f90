# MGD: RetinaNet on ResNet101 teaches the one on ResNet50 the levels of its pyramid, which a small net generates
# from about a third of the student's positions. By the authors' recipe: the student's neck and head begin as the
# teacher's, and gradients are clipped at 35.
_base_ = ['../_base_/pairs/retinanet-r101_retinanet-r50_coco.py', '../_base_/terms/dense_detectors.py']

model = dict(inherit=['neck', 'bbox_head'], terms=dict(loss_mgd=_base_.mgd_term))
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
