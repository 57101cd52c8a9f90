# CrossKD: RetinaNet on ResNet101 teaches the one on ResNet18 what its head makes of the student's features.
_base_ = ['../_base_/pairs/retinanet-r101_retinanet-r18_coco.py', '../_base_/terms/dense_detectors.py']

model = dict(terms=dict(loss_crosskd=_base_.crosskd_term, loss_boxes=_base_.retinanet_crosskd_boxes_term))
