# The teacher: four times as wide a backbone as its student's.
_base_ = './deformable-detr_r18-w8_1xb8-digit-scenes-96x96.py'

model = dict(backbone=dict(base_channels=32), neck=dict(in_channels=[64, 128]))
