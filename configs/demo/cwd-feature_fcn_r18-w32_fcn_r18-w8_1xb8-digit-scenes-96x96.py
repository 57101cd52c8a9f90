# The demo's student with CWD on the map before the class scores.
_base_ = ['../_base_/pairs/fcn_r18-w32_fcn_r18-w8_digit-scenes.py', '../_base_/terms/cwd.py']

model = dict(taps=dict(feature='decode_head.convs'), terms=dict(loss_cwd=_base_.cwd_feature_term))
