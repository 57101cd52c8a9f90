# KD: SegFormer on MiT-B5 teaches PIDNet-S.
_base_ = [
    '../_base_/pairs/segformer_mit-b5_pidnet-s_cityscapes.py',
    '../_base_/terms/real_time_segmentors.py',
]

model = dict(terms=dict(loss_kd=_base_.kd_term))
