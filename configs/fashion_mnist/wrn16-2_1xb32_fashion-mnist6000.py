# The teacher, on the same 6,000 images.
_base_ = './wrn10-1_1xb32_fashion-mnist6000.py'

model = dict(backbone=dict(depth=16, widen_factor=2), head=dict(in_channels=128))
