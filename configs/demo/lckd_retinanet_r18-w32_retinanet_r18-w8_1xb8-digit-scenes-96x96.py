# The detection demo's student with LONDON: OFD, and Lipschitz matching of the same connected stages.
_base_ = './ofd_retinanet_r18-w32_retinanet_r18-w8_1xb8-digit-scenes-96x96.py'

model = dict(terms=dict(loss_lipschitz=_base_.lipschitz_term))
