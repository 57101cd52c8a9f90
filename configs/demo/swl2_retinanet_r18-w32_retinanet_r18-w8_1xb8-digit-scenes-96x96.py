# The detection demo's student with The score-weighted distance: the pyramid, where the teacher sees digits.
_base_ = ['../_base_/pairs/retinanet_r18-w32_retinanet_r18-w8_digit-scenes.py', '../_base_/terms/retinanet_demo.py']

model = dict(terms=dict(loss_swl2=_base_.swl2_term))
