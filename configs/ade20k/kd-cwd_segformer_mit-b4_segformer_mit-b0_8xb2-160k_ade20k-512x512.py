# KD and CWD of the class scores, and CWD of the map before them: SegFormer on MiT-B4 teaches the one on MiT-B0. CWD's
# weight of the scores is the authors' on ADE20K.
_base_ = [
    '../_base_/pairs/segformer_mit-b4_segformer_mit-b0_ade20k.py',
    '../_base_/terms/segmentation.py',
    '../_base_/terms/cwd.py',
]

model = dict(
    terms=dict(
        loss_kd=_base_.kd_term,
        loss_cwd=dict(_base_.cwd_term, weight=10.0),
        loss_cwd_feature=_base_.cwd_feature_term,
    )
)
