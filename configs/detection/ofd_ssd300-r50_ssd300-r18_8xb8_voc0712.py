# OFD: SSD300 on ResNet50, on batch statistics, teaches SSD300 on ResNet18.
_base_ = ['../_base_/pairs/ssd300-r50_ssd300-r18_voc0712.py', '../_base_/terms/ssd300.py']

model = dict(teacher=dict(bn='batch'), terms=dict(loss_ofd=_base_.ssd_ofd_term))
