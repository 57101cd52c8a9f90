# PKD: Mask R-CNN on Swin-S teaches RetinaNet on ResNet50 the levels of its pyramid. The weight is mmrazor's of this
# pair, which compares the first four levels of each pyramid, and resizes them.
_base_ = ['../_base_/pairs/mask-rcnn-swin-s_retinanet-r50_coco.py', '../_base_/terms/coco_detectors.py']

model = dict(terms=dict(loss_pkd=dict(_base_.fpn_pkd_term, weight=6.0)))
