# SSD300 on ResNet50 teaches SSD300 on ResNet18, on VOC07+12: Lipschitz matching of the stages and maps, and KD.
_base_ = './detection/lckd-kd_ssd300-r50_ssd300-r18_8xb8_voc0712.py'
