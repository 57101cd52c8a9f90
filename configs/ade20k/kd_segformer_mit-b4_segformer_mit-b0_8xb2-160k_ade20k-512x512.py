# KD: SegFormer on MiT-B4 teaches the one on MiT-B0.
_base_ = [
    '../_base_/pairs/segformer_mit-b4_segformer_mit-b0_ade20k.py',
    '../_base_/terms/segmentation.py',
]

model = dict(terms=dict(loss_kd=_base_.kd_term))
