# PKD: RetinaNet on ResNet50 teaches the one on ResNet18 the channels of its pyramid, up to their scale.
_base_ = ['../_base_/pairs/retinanet-r50_retinanet-r18_voc0712.py', '../_base_/terms/dense_detectors.py']

model = dict(terms=dict(loss_pkd=_base_.pkd_term))
