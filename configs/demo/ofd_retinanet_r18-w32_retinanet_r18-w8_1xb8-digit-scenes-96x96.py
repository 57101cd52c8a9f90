# The detection demo's student with OFD: three stages before a ReLU, through connectors, to the teacher's with margins.
_base_ = ['../_base_/pairs/retinanet_r18-w32_retinanet_r18-w8_digit-scenes.py', '../_base_/terms/retinanet_demo.py']

model = dict(terms=dict(loss_ofd=_base_.ofd_term))
default_hooks = dict(lipschitz=dict(term='loss_ofd'))  # whose connected maps it looks at, too
