# The demo's student with OFD: the four stages before a ReLU, through connectors, to the teacher's with margins.
_base_ = ['../_base_/pairs/fcn_r18-w32_fcn_r18-w8_digit-scenes.py', '../_base_/terms/fcn_demo.py']

model = dict(terms=dict(loss_ofd=_base_.ofd_term))
default_hooks = dict(lipschitz=dict(term='loss_ofd'))  # whose connected maps it looks at, too
