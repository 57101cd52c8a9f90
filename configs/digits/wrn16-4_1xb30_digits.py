# The teacher, on all 898 scans of the first half.
_base_ = [
    '../_base_/runtimes/mmpretrain.py',
    '../_base_/datasets/digits_bs30.py',
    '../_base_/schedules/digits_40e.py',
    '../_base_/models/wrn16-4_digits.py',
]

model = _base_.wrn16_4
default_hooks = dict(checkpoint=dict(interval=40, max_keep_ckpts=1), logger=dict(interval=10))
train_dataloader = dict(dataset=dict(subset=None))
