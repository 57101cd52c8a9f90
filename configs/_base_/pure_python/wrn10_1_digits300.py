# The student alone on 300 digits, in pure Python: ../../digits/wrn10-1_1xb30_digits300.py with classes for names.
from mmengine.dataset import DefaultSampler
from mmengine.hooks import CheckpointHook, LoggerHook
from mmengine.optim import CosineAnnealingLR
from mmengine.runner import EpochBasedTrainLoop, TestLoop, ValLoop
from mmpretrain.datasets import PackInputs
from mmpretrain.evaluation import Accuracy
from mmpretrain.models import CrossEntropyLoss, GlobalAveragePooling, ImageClassifier, LinearClsHead
from torch.optim import SGD

from lckd_mm.backbones import WideResNet
from lckd_mm.data.digits import Digits

default_scope = 'mmpretrain'
model = dict(
    type=ImageClassifier,
    backbone=dict(type=WideResNet, depth=10, widen_factor=1),
    neck=dict(type=GlobalAveragePooling),
    head=dict(type=LinearClsHead, num_classes=10, in_channels=64, loss=dict(type=CrossEntropyLoss)),
)
data_preprocessor = dict(num_classes=10, mean=[78.0] * 3, std=[96.0] * 3, to_rgb=False)
train_dataloader = dict(
    batch_size=30,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(type=Digits, split='train', subset=300, pipeline=[dict(type=PackInputs)]),
)
val_dataloader = dict(
    batch_size=300,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(type=Digits, split='test', pipeline=[dict(type=PackInputs)]),
)
val_evaluator = dict(type=Accuracy, topk=(1,))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
optim_wrapper = dict(optimizer=dict(type=SGD, lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True))
param_scheduler = [dict(type=CosineAnnealingLR, by_epoch=True, T_max=40, convert_to_iter_based=True)]
train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=40, val_interval=40)
val_cfg = dict(type=ValLoop)
test_cfg = dict(type=TestLoop)
default_hooks = dict(
    checkpoint=dict(type=CheckpointHook, interval=40, max_keep_ckpts=1), logger=dict(type=LoggerHook, interval=10)
)
randomness = dict(seed=0)
