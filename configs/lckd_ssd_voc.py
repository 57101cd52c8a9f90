# SSD300 on ResNet50 teaches SSD300 on ResNet18 on VOC07+12 by LONDON: OFD on the four stages, and Lipschitz matching of
# the same connected stages. Train the teacher first: tools/dist_train.sh configs/detection/ssd300-r50_8xb8_voc0712.py 8
_base_ = './detection/lckd_ssd300-r50_ssd300-r18_8xb8_voc0712.py'
