# Methods of dense detectors on BCCD: RetinaNet and GFL on MobileNetV2 teach those on ResNet-18 of an eighth of the
# width. The protocol is in docs/studies.md.
title = 'BCCD: RetinaNet and GFL'
metric = dict(key='pascal_voc/mAP', title='mAP at 0.5 and 0.7, %', scale=100)
work_dir = 'work_dirs/bccd'

_cells = 'configs/bccd/{}_1xb4-bccd-160x120.py'
# Parts of the loss at the start: of all terms of scores and boxes, and of all terms of features; chosen for KD and OFD.
_scores, _features = 'start:0.5', 'start:0.2'
_levels = ['p2', 'p3', 'p4', 'p5']
_stages = ['stage1', 'stage2', 'stage3', 'stage4']
_gfl_boxes = ['boxes2', 'boxes3', 'boxes4', 'boxes5']
_conv_bn = dict(type='lckd_mm.ConvBN')
_aligned = [_conv_bn, dict(type='lckd_mm.MatchStatistics')]
_by_scores = dict(given=dict(scores='logits'))


def _loss(name, **arguments):
    return dict(loss=dict(type=f'lckd_mm.{name}', **arguments))


def _of_scores(name, part=_scores, **arguments):
    return {f'loss_{name}': dict(weight=part, **arguments)}


def _of_levels(name, **arguments):
    return {f'loss_{name}': dict(on=_levels, weight=_features, **arguments)}


def _reused(name, tower, teacher, part, **arguments):
    return _of_scores(name, part, student=tower, reuse=tower, teacher=teacher, connector=_aligned, **arguments)


def _methods(boxes):
    """Run: title and terms; without terms it has a config of its own. Scores and boxes share their part of the loss."""
    half = 'start:0.25'
    kd = _of_scores('kd', on='logits', **_loss('KDLoss', tau=2.0))
    return {
        'kd': ('KD', None),
        'ofd': ('OFD', None),
        'bckd': (
            'BCKD',
            _of_scores('bckd', half, on='logits', **_loss('BCKDLoss'))
            | _of_scores('boxes', half, on=boxes, **_loss('BCKDBoxLoss'), **_by_scores),
        ),
        'crosskd': (
            'CrossKD',
            _reused('crosskd', 'cls_tower', 'logits', half, **_loss('BCKDLoss'))
            | _reused('boxes', 'reg_tower', boxes, half, **_loss('BCKDBoxLoss', weigh='confidence'), **_by_scores),
        ),
        'pkd': ('PKD', _of_levels('pkd', **_loss('PKDLoss'), connector=_conv_bn)),
        'mgd': (
            'MGD',
            _of_levels('mgd', **_loss('MGDLoss'), connector=dict(type='lckd_mm.MaskedGenerator', ratio=0.65)),
        ),
        'fgd': ('FGD', _of_levels('fgd', **_loss('FGDLoss'), connector=_conv_bn)),
        'cwd': ('CWD', _of_levels('cwd', **_loss('CWDLoss', tau=4.0), connector=_conv_bn)),
        'swl2': (
            'score-weighted distance',
            _of_levels('swl2', **_loss('ScoreWeightedLoss'), **_by_scores, connector=dict(type='lckd_mm.MLP')),
        ),
        'fitnets': ('FitNets', _of_levels('fitnets', **_loss('FitNetsLoss'), connector=_conv_bn)),
        'kd-ofd': (
            'KD + OFD',
            kd
            | {
                'loss_ofd': dict(
                    on=_stages,
                    weight=_features,
                    **_loss('OFDLoss'),
                    connector=_conv_bn,
                    teacher_connector=dict(type='lckd_mm.MarginReLU'),
                )
            },
        ),
        'kd-pkd': (
            'KD + PKD',
            kd | _of_levels('pkd', **_loss('PKDLoss'), connector=_conv_bn),
        ),
        'kd-lipschitz': (
            'KD + Lipschitz',
            kd | {'loss_lipschitz': dict(**_loss('LipschitzLoss', gap='log'), on=_stages, weight='start:0.02')},
        ),
    }


_ld = {'ld': ('LD', _of_scores('ld', on=_gfl_boxes, **_loss('LDLoss', tau=1.0), **_by_scores))}
runs = {}
# RetinaNet's runs have plain names, GFL's begin with gfl-.
# The student alone gains nothing by more than 800 steps. Twice as many take as long as most methods do for 800.
_long = 1600
for _net, _begin, _title, _taught in (
    ('retinanet', '', 'RetinaNet: ', _methods('boxes')),
    ('gfl', 'gfl-', 'GFL: ', _methods(_gfl_boxes) | _ld),
):
    _longer = {'train_cfg.max_iters': _long, 'param_scheduler.0.total_steps': _long}
    _steps = f', {_long:,} steps'
    runs[f'{_begin}teacher'] = dict(config=_cells.format(f'{_net}_m-v2'), title=f'{_title}teacher')
    runs[f'{_begin}alone'] = dict(config=_cells.format(f'{_net}_r18-w8'), title=f'{_title}student alone')
    runs[f'{_begin}longer'] = dict(
        runs[f'{_begin}alone'], title=f'{_title}student alone{_steps}', options=_longer, against=f'{_begin}alone'
    )
    _pair = f'{_net}_m-v2_{_net}_r18-w8'
    for _name, (_method, _terms) in _taught.items():
        runs[f'{_begin}{_name}'] = dict(
            config=f'configs/_base_/pairs/{_pair}_bccd.py' if _terms else _cells.format(f'{_name}_{_pair}'),
            title=_title + _method,
            options={'model.terms': _terms} if _terms else {},
            needs={'model.teacher.checkpoint': f'{_begin}teacher'},
            against=f'{_begin}alone',
        )
        if _name in ('kd', 'ofd'):
            runs[f'{_begin}{_name}-longer'] = dict(
                runs[f'{_begin}{_name}'], title=f'{_title}{_method}{_steps}', options=_longer, against=f'{_begin}longer'
            )
