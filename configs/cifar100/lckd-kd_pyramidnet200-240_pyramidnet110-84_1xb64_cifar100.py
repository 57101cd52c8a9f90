# Setting f, LONDON and KD.
_base_ = './lckd_pyramidnet200-240_pyramidnet110-84_1xb64_cifar100.py'

model = dict(terms=dict(loss_kd=_base_.kd_term))
