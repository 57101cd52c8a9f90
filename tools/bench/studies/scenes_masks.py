# The masks of scenes_families.py: its runs of Mask R-CNN, which are not repeated.
_base_ = './scenes_families.py'
title = 'Digit scenes: masks of Mask R-CNN'
metric = dict(key='coco/segm_mAP', title='mask AP, %')
runs = dict(_delete_=True, **{name: run for name, run in _base_.runs.items() if name.startswith('mask')})
