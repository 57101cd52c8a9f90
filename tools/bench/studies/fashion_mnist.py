# Methods of classification on 6,000 images of Fashion-MNIST: WRN16-2 teaches WRN10-1.
# The protocol is in docs/studies.md.
title = 'Fashion-MNIST, 6,000 images: WRN16-2 and WRN10-1'
metric = dict(key='accuracy/top1', title='accuracy, %')
work_dir = 'work_dirs/fashion-mnist'

_images = 'configs/fashion_mnist/{}_1xb32_fashion-mnist6000.py'
_nets = 'wrn16-2_wrn10-1'
_teacher = {'model.teacher.checkpoint': 'teacher'}
# Parts of the loss at the start: of all terms of scores, and of all terms of features.
_scores = _features = 'start:0.9'
_stages = ['stage1', 'stage2', 'stage3']
_conv_bn = dict(type='lckd_mm.ConvBN')


def _loss(name, **arguments):
    return dict(loss=dict(type=f'lckd_mm.{name}', **arguments))


def _of_scores(name, **arguments):
    return {f'loss_{name}': dict(on='logits', weight=_scores, **arguments)}


def _of_features(name, on, **arguments):
    return {f'loss_{name}': dict(on=on, weight=_features, **arguments)}


_ofd = _of_features(
    'ofd', _stages, **_loss('OFDLoss'), connector=_conv_bn, teacher_connector=dict(type='lckd_mm.MarginReLU')
)
_lipschitz = dict(
    loss_lipschitz=dict(**_loss('LipschitzLoss', gap='log'), on=_stages, connector='loss_ofd', weight='start:0.02')
)
# Run: title and terms; without terms it has a config of its own in configs/fashion_mnist.
_methods = {
    'kd': ('KD', None),
    'ofd': ('OFD', None),
    'auto': ('the recipe auto', None),
    'kd-z': ('KD, standardised', _of_scores('kd', **_loss('KDLoss', tau=4.0, standardise=True))),
    'dkd': ('DKD', _of_scores('dkd', **_loss('DKDLoss', tau=4.0, alpha=1.0, beta=2.0))),
    'dist': ('DIST', _of_scores('dist', **_loss('DISTLoss'))),
    'sp': ('SP', _of_features('sp', 'stage3', **_loss('SPLoss'))),
    'crd': ('CRD', _of_features('crd', 'embedding', **_loss('CRDLoss', samples=6000))),
    'reviewkd': ('ReviewKD', _of_features('reviewkd', [*_stages, 'embedding'], **_loss('ReviewKDLoss'))),
    'lckd': ('LONDON (OFD + Lipschitz)', _ofd | _lipschitz),
    'jacobian': ('Jacobian matching', _of_scores('jacobian', **_loss('JacobianLoss', mode='noise', sigma=0.1))),
}
runs = dict(
    teacher=dict(config=_images.format('wrn16-2'), title='teacher'),
    alone=dict(config=_images.format('wrn10-1'), title='student alone'),
    # Three times the epochs.
    longer=dict(
        config=_images.format('wrn10-1'),
        title='student alone, 72 epochs',
        options={'train_cfg.max_epochs': 72, 'param_scheduler.0.T_max': 72},
        against='alone',
    ),
)
for _name, (_title, _terms) in _methods.items():
    runs[_name] = dict(
        config=f'configs/_base_/pairs/{_nets}_fashion-mnist6000.py' if _terms else _images.format(f'{_name}_{_nets}'),
        title=_title,
        options={'model.terms': _terms} if _terms else {},
        needs=_teacher,
        against='alone',
    )
