# The student alone, on 300 scans.
_base_ = [
    '../_base_/runtimes/mmpretrain.py',
    '../_base_/datasets/digits_bs30.py',
    '../_base_/schedules/digits_40e.py',
    '../_base_/models/wrn10-1_digits.py',
]

model = _base_.wrn10_1
default_hooks = dict(checkpoint=dict(interval=40, max_keep_ckpts=1), logger=dict(interval=10))
