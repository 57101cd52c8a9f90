# Setting b, OFD: wrn28-4 teaches wrn28-2, on batch statistics as the authors run it.
# The released script of LONDON trains WRN16-4 from another teacher here; this is OFD's pair.
_base_ = [
    './wrn28-2_1xb128_cifar100.py',
    '../_base_/models/wrn28-4_cifar100.py',
    '../_base_/terms/cifar100.py',
    '../_base_/taps/wrn.py',
]

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model=_base_.wrn28_4,
        checkpoint='work_dirs/wrn28-4_1xb128_cifar100/epoch_200.pth',
        bn='batch',
    ),
    taps=_base_.wrn_taps,
    terms=dict(
        loss_ofd=_base_.ofd_term,
    ),
)
