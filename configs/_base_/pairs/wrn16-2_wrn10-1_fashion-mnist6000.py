# wrn16-2 teaches wrn10-1 on 6,000 images of Fashion-MNIST.
_base_ = ['../../fashion_mnist/wrn10-1_1xb32_fashion-mnist6000.py', '../taps/wrn.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model='configs/fashion_mnist/wrn16-2_1xb32_fashion-mnist6000.py',
        checkpoint='work_dirs/fashion-mnist/seed0/teacher/epoch_24.pth',
    ),
    taps=_base_.wrn_taps,
    dry_run_size=28,
)
