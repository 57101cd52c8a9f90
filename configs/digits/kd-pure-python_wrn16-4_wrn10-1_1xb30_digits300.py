# KD and FitNets in mmengine's pure-Python style: read_base in place of _base_, classes in place of names.
from mmengine.config import read_base

with read_base():
    from .._base_.pure_python.wrn10_1_digits300 import *

from lckd_mm.connectors import ConvBN
from lckd_mm.distillation import Distiller
from lckd_mm.losses import FitNetsLoss, KDLoss

# `model` is the student, as `_base_.model` is in the text style.
wrn16_4 = dict(
    model,
    backbone=dict(model['backbone'], depth=16, widen_factor=4),
    head=dict(model['head'], in_channels=256),
)
model = dict(
    type=Distiller,
    student=model,
    teacher=dict(model=wrn16_4, checkpoint='work_dirs/digits/seed0/teacher/epoch_40.pth'),
    taps=dict(stage3='backbone.bn1', logits='head.fc'),
    terms=dict(
        loss_kd=dict(loss=dict(type=KDLoss, tau=4.0), on='logits', weight=1.0),
        loss_fitnets=dict(loss=dict(type=FitNetsLoss), on='stage3', connector=dict(type=ConvBN), weight=1.0),
    ),
)
