# Every method on the digits, with equal budgets; the table of configs/digits/README.md.
title = 'Every method on the digits'
metric = dict(key='accuracy/top1', title='accuracy, %')
work_dir = 'work_dirs/digits'

_digits = 'configs/digits/{}_1xb30_digits300.py'
_pair = 'configs/_base_/pairs/{}_digits300.py'

_stages = dict(on=['stage1', 'stage2', 'stage3'])
_conv_bn = dict(type='lckd_mm.ConvBN')
_connected = dict(connector=_conv_bn)
_conv = dict(_stages, **_connected)
_margin = dict(_conv, teacher_connector=dict(type='lckd_mm.MarginReLU'))
_inherit = dict(type='lckd_mm.ChannelPart', part='inherit')
_explore = dict(type='lckd_mm.ChannelPart', part='explore')


def _loss(name, **arguments):
    return dict(loss=dict(type=f'lckd_mm.{name}', **arguments))


def _partial(tau=4.0, **arguments):
    return dict(loss_kd=dict(**_loss('PartialKDLoss', tau=tau, **arguments), on='logits', weight=1.0))


def _lipschitz(gap, weight, **more):
    return dict(loss_lipschitz=dict(**_loss('LipschitzLoss', gap=gap), **_stages, **more, weight=weight))


def _factors(teacher):
    """IE over the factor of an auto-encoder: half of the channels inherit it, the other half moves away from it."""
    inherit, explore = ([part, dict(type='lckd_mm.FactorEncoder')] for part in (_inherit, _explore))
    borrowed = teacher if isinstance(teacher, str) else 'loss_inherit'
    return dict(
        loss_inherit=dict(**_loss('FTLoss'), on='stage3', connector=inherit, teacher_connector=teacher, weight=50.0),
        loss_explore=dict(
            **_loss('ExploreLoss', **_loss('FTLoss')),
            on='stage3',
            connector=explore,
            teacher_connector=borrowed,
            weight=50.0,
        ),
    )


_kd = dict(loss_kd=dict(**_loss('KDLoss', tau=4.0), on='logits', weight=1.0))
_ofd = dict(loss_ofd=dict(**_loss('OFDLoss'), **_margin, weight=0.001))
_london = _lipschitz('log', 3.0, connector='loss_ofd')
# Run: title and terms; without terms it has a config of its own in configs/digits.
_taught = {
    'kd': ('KD', None),
    'kd-standardised': ('KD, standardised scores', None),
    'dkd': ('DKD', None),
    'dist': ('DIST', None),
    'wsld': ('WSLD', None),
    'kd-pt': ('KD, partial: true class', _partial(kind='pt')),
    # A quarter of the classes.
    'kd-topk': ('KD, partial: 3 largest', _partial(kind='topk', k=3)),
    'kd-sim': ('KD, partial: similar rows', _partial(kind='sim', alpha=0.5, beta=0.3)),
    # Digits that look alike: 0 6, 1 7, 2 3 5, 4 9, 8.
    'kd-rel': (
        'KD, partial: super-classes',
        _partial(kind='rel', betas=(0.6, 0.05), superclasses=[0, 1, 2, 2, 3, 2, 0, 1, 4, 3]),
    ),
    # It uses nothing of the teacher.
    'ls': ('label smoothing', _partial(tau=1.0, kind='label_smoothing', epsilon=0.1)),
    'fitnets': ('FitNets', dict(loss_fitnets=dict(**_loss('FitNetsLoss'), on='stage3', **_connected, weight=1.0))),
    # The authors' 1000 belongs to the sum over the layers, ATLoss is their mean.
    'at': ('AT', dict(loss_at=dict(**_loss('ATLoss'), **_stages, weight=3000.0))),
    'fsp': ('FSP', dict(loss_fsp=dict(**_loss('FSPLoss'), **_conv, weight=0.1))),
    'ft': (
        'FT',
        dict(
            loss_ft=dict(
                **_loss('FTLoss'),
                on='stage3',
                connector=dict(type='lckd_mm.Translator'),
                teacher_connector=dict(type='lckd_mm.Paraphraser', batches=300),
                weight=20.0,
            )
        ),
    ),
    'ie': ('IE', _factors(dict(type='lckd_mm.AutoEncoder', batches=300))),
    'ie-at': (
        'IE over AT',
        dict(
            loss_inherit=dict(**_loss('ATLoss'), **_stages, connector=_inherit, weight=3000.0),
            loss_explore=dict(**_loss('ExploreLoss', **_loss('ATLoss')), **_stages, connector=_explore, weight=10.0),
        ),
    ),
    'ie-ofd': (
        'IE over OFD',
        dict(
            loss_inherit=dict(**_loss('OFDLoss'), **dict(_margin, connector=[_inherit, _conv_bn]), weight=0.001),
            # Without a bound the negative of a squared distance has no minimum.
            loss_explore=dict(
                **_loss('ExploreLoss', **_loss('OFDLoss'), form='saturating', bound=1000.0),
                **_stages,
                connector=[_explore, _conv_bn],
                teacher_connector='loss_inherit',
                weight=0.001,
            ),
        ),
    ),
    'jacobian': (
        'Jacobian matching, noise',
        dict(loss_jacobian=dict(**_loss('JacobianLoss', mode='noise', sigma=0.1), on='logits', weight=1.0)),
    ),
    'ab': ('AB', dict(loss_ab=dict(**_loss('ABLoss'), **_conv, weight=0.003))),
    'afd': ('AFD', dict(loss_afd=dict(**_loss('AFDLoss'), **_conv, weight=0.1))),
    'rkd': ('RKD', dict(loss_rkd=dict(**_loss('RKDLoss'), on='embedding', weight=1.0))),
    'sp': ('SP', None),
    'vid': ('VID', None),
    'crd': ('CRD', None),
    'reviewkd': ('ReviewKD', None),
    'srrl': ('SRRL', None),
    'lgan': (
        'Lipschitz critic (LGAN)',
        dict(
            loss_lgan=dict(
                **_loss(
                    'AdversarialLoss',
                    critic=dict(type='lckd_mm.ConvCritic'),
                    **_loss('LGANLoss', phi='softplus'),
                    penalty=dict(type='lckd_mm.GradientPenalty', kind='max', weight=0.1),
                ),
                on='stage3',
                **_connected,
                weight=0.01,
            )
        ),
    ),
    'ofd': ('OFD', _ofd),
    'lckd-absolute': ('raw Lipschitz, absolute', _lipschitz('absolute', 0.002)),
    'lckd-relative': ('raw Lipschitz, relative', _lipschitz('relative', 0.2)),
    'lckd-log': ('raw Lipschitz, log', _lipschitz('log', 0.2)),
    'lckd-kd': ('KD + raw Lipschitz, log', None),
    'kd-ofd': ('KD + OFD', _kd | _ofd),
    'lckd-ofd': ('LONDON, log gap (OFD + Lipschitz)', _ofd | _london),
    'lckd-ofd-kd': ('LONDON, log gap, + KD', _ofd | _kd | _london),
}
# Without a teacher: two students learn from each other.
_online = {
    'online-kd': (
        'online KD, two students',
        dict(loss_kd=dict(**_loss('KDLoss', tau=3.0), on='logits', weight=1.0)),
    ),
    'online-afd': ('AFD (online, adversarial), two students', None),
    'online-ie': (
        'IE, mutual, two students',
        dict(
            loss_autoencoder=dict(
                **_loss('ReconstructionLoss'),
                on='stage3',
                teacher_connector=dict(type='lckd_mm.AutoEncoder', online=True),
                weight=1.0,
            ),
            **_factors('loss_autoencoder'),
        ),
    ),
}
runs = dict(
    teacher=dict(config='configs/digits/wrn16-4_1xb30_digits.py', title='teacher (WRN16-4, 898 scans)'),
    alone=dict(config=_digits.format('wrn10-1'), title='student alone (WRN10-1, 300 scans)'),
)
for _methods, _nets, _needs in (
    (_taught, 'wrn16-4_wrn10-1', {'model.teacher.checkpoint': 'teacher'}),
    (_online, 'wrn10-1_wrn10-1', {}),
):
    for _name, (_title, _terms) in _methods.items():
        runs[_name] = dict(
            config=_pair.format(_nets) if _terms else _digits.format(f'{_name}_{_nets}'),
            title=_title,
            options={'model.terms': _terms} if _terms else {},
            needs=_needs,
            against='alone',
        )
