# CrossKD: GFL on ResNet101 teaches the one on ResNet18 what its head makes of the student's features.
_base_ = ['../_base_/pairs/gfl-r101_gfl-r18_coco.py', '../_base_/terms/dense_detectors.py']

model = dict(
    terms=dict(
        loss_crosskd=_base_.crosskd_term,
        loss_boxes=_base_.gfl_crosskd_boxes_term,
        loss_ld=_base_.gfl_crosskd_ld_term,
    )
)
