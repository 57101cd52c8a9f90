# PIDNet-S alone: mmseg's own config, but for the class weights in one auxiliary branch's loss: with them mmseg 1.2.2
# stops at the first pixel without a class (mmsegmentation's issue 3734).
_base_ = 'mmseg::pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py'

losses = [dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4), *_base_.model.decode_head.loss_decode[1:]]
model = dict(decode_head=dict(loss_decode=losses))
