# Score-weighted distance: RetinaNet on ResNet50 teaches the one on ResNet18 its pyramid, where it
# sees objects.
_base_ = ['../_base_/pairs/retinanet-r50_retinanet-r18_voc0712.py', '../_base_/terms/dense_detectors.py']

model = dict(terms=dict(loss_swl2=_base_.swl2_term))
