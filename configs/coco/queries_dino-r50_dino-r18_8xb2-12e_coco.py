# The teacher's decoder judges both encoders' outputs by its own queries.
_base_ = ['../_base_/pairs/dino-r50_dino-r18_coco.py', '../_base_/terms/coco_detectors.py']

model = dict(terms=dict(loss_queries=_base_.queries_term))
