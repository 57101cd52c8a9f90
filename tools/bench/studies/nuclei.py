# Methods of segmentation on nuclei: DeepLabV3+ on MobileNetV2 teaches the one on a ResNet-18 of an eighth of the width.
# The protocol is in docs/studies.md.
title = 'Nuclei: DeepLabV3+ on MobileNetV2 and on ResNet18-w8'
metric = dict(key='mIoU', title='mIoU')
work_dir = 'work_dirs/nuclei'

_nuclei = 'configs/nuclei/{}_1xb8-nuclei-96x96.py'
_nets = 'deeplabv3plus_m-v2-d16_deeplabv3plus_r18-w8-d16'
_teacher = {'model.teacher.checkpoint': 'teacher'}
# Parts of the loss at the start: of all terms of scores, and of all terms of features.
_scores, _features = 'start:0.5', 'start:0.7'
_stages = ['stage1', 'stage2', 'stage3', 'stage4']
_conv_bn = dict(type='lckd_mm.ConvBN')


def _loss(name, **arguments):
    return dict(loss=dict(type=f'lckd_mm.{name}', **arguments))


def _of_scores(name, **arguments):
    return {f'loss_{name}': dict(on='logits', weight=_scores, **arguments)}


def _of_features(name, on, part=_features, **arguments):
    return {f'loss_{name}': dict(on=on, weight=part, **arguments)}


_kd = _of_scores('kd', **_loss('KDLoss', tau=2.0))
# Run: title and terms; without terms it has a config of its own in configs/nuclei.
_methods = {
    'kd': ('KD', None),
    'ofd': ('OFD', None),
    'auto': ('the recipe auto', None),
    'kd-z': ('KD, standardised', _of_scores('kd', **_loss('KDLoss', tau=2.0, standardise=True))),
    'cwd': ('CWD of the scores', _of_scores('cwd', **_loss('CWDLoss', tau=1.0))),
    'dist': ('DIST', _of_scores('dist', **_loss('DISTLoss'))),
    'cwd-feature': ('CWD of a map', _of_features('cwd', 'decoder', **_loss('CWDLoss', tau=4.0), connector=_conv_bn)),
    'mgd': (
        'MGD',
        _of_features('mgd', 'stage4', **_loss('MGDLoss'), connector=dict(type='lckd_mm.MaskedGenerator', ratio=0.65)),
    ),
    'at': ('AT', _of_features('at', _stages, **_loss('ATLoss'))),
    'pkd': ('PKD', _of_features('pkd', _stages, **_loss('PKDLoss'), connector=_conv_bn)),
    # Each with half of its part.
    'kd-ofd': (
        'KD + OFD',
        {'loss_kd': _kd['loss_kd'] | dict(weight='start:0.25')}
        | _of_features(
            'ofd',
            _stages,
            **_loss('OFDLoss'),
            connector=_conv_bn,
            teacher_connector=dict(type='lckd_mm.MarginReLU'),
            part='start:0.35',
        ),
    ),
    'kd-lipschitz': (
        'KD + Lipschitz',
        _kd | {'loss_lipschitz': dict(**_loss('LipschitzLoss', gap='log'), on=_stages, weight='start:0.05')},
    ),
}
runs = dict(
    teacher=dict(config=_nuclei.format('deeplabv3plus_m-v2-d16'), title='teacher'),
    alone=dict(config=_nuclei.format('deeplabv3plus_r18-w8-d16'), title='student alone'),
    # As long as CWD of a map, whose step takes 2.75 times that of the student.
    longer=dict(
        config=_nuclei.format('deeplabv3plus_r18-w8-d16'),
        title='student alone, 2,200 steps',
        options={'train_cfg.max_iters': 2200, 'param_scheduler.0.total_steps': 2200},
        against='alone',
    ),
)
for _name, (_title, _terms) in _methods.items():
    runs[_name] = dict(
        config=f'configs/_base_/pairs/{_nets}_nuclei.py' if _terms else _nuclei.format(f'{_name}_{_nets}'),
        title=_title,
        options={'model.terms': _terms} if _terms else {},
        needs=_teacher,
        against='alone',
    )
