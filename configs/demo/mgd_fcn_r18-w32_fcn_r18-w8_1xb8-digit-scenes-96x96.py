# The demo's student with MGD: the teacher's last stage, generated from a quarter of the student's positions.
_base_ = ['../_base_/pairs/fcn_r18-w32_fcn_r18-w8_digit-scenes.py', '../_base_/terms/segmentors.py']

model = dict(taps=dict(last='backbone.layer4'), terms=dict(loss_mgd=_base_.mgd_term))
