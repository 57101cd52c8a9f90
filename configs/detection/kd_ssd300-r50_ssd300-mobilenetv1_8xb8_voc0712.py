# KD: SSD300 on ResNet50 teaches SSD300 on MobileNetV1 the class scores of all anchors.
_base_ = ['../_base_/pairs/ssd300-r50_ssd300-mobilenetv1_voc0712.py', '../_base_/terms/ssd300.py']

model = dict(terms=dict(loss_kd=_base_.ssd_kd_term))
