# The student alone, on 6,000 images.
_base_ = [
    '../_base_/runtimes/mmpretrain.py',
    '../_base_/datasets/fashion_mnist6000_bs32.py',
    '../_base_/schedules/fashion_mnist_24e.py',
    '../_base_/models/wrn10-1_digits.py',
]

model = _base_.wrn10_1
default_hooks = dict(checkpoint=dict(interval=24, max_keep_ckpts=1), logger=dict(interval=20))
