# AFD's setting without its adversarial part: two resnet32 learn from each other's class scores, temperature 3.
# The temperature is from memory: not checked against the paper.
_base_ = ['./resnet32_1xb128_cifar100.py', '../_base_/taps/cifar_resnet.py']

model = dict(
    _delete_=True,
    type='lckd_mm.OnlineDistiller',
    nets=[_base_.model, _base_.model],
    taps=_base_.cifar_resnet_taps,
    terms=dict(
        loss_kd=dict(
            loss=dict(type='lckd_mm.KDLoss', tau=3.0),
            on='logits',
            weight=1.0,
        ),
    ),
)
