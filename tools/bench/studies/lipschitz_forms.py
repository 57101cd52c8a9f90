# Forms of Lipschitz guidance beside KD, and beside KD + OFD: WRN16-4 teaches WRN10-1 on 100 scans of digits. The forms
# are in tools/bench/forms/lipschitz.py. Found on seeds 100 to 104, confirmed on 0 to 9.
title = 'Forms of Lipschitz guidance on 100 scans of digits'
metric = dict(key='accuracy/top1', title='accuracy, %')
work_dir = 'work_dirs/lipschitz-forms'

_stages = ['stage1', 'stage2', 'stage3']
_few = {'train_dataloader.dataset.subset': 100}


def _term(name, part, on=_stages, **more):
    return dict(loss_lipschitz=dict(loss=dict(type=f'lckd_mm.{name}', **more), on=on, weight=part))


_kd = dict(loss_kd=dict(loss=dict(type='lckd_mm.KDLoss', tau=4.0), on='logits', weight=1.0))
_ofd = dict(
    loss_ofd=dict(
        loss=dict(type='lckd_mm.OFDLoss'),
        on=_stages,
        connector=dict(type='lckd_mm.ConvBN'),
        teacher_connector=dict(type='lckd_mm.MarginReLU'),
        weight=0.001,
    )
)
_teacher = {'model.teacher.checkpoint': 'teacher'}
_taught = {'kd': ('KD', _kd), 'ofd': ('OFD', _ofd), 'kd-ofd': ('KD + OFD', _kd | _ofd)}
#: The part of the loss at the start, or, where the term is small at the start, a weight.
_forms = {
    'raw': ('σ, log gap', 'LipschitzLoss', {}, ('start:0.02', 'start:0.2')),
    'normalised': ('σ of normalised maps', 'LipschitzLoss', dict(normalise=True), ('start:0.02', 'start:0.2')),
    'share': ('σ over the Frobenius norm', 'ShareOfNorm', {}, ('start:0.02', 'start:0.2')),
    'shares': ('shares of 4 singular values', 'Shares', {}, ('start:0.02', 'start:0.2')),
    'above': ("σ above the teacher's", 'Above', {}, (0.15, 0.75)),
    'patterns': ('leading patterns', 'LeadingPatterns', {}, ('start:0.02', 'start:0.2', 'start:0.5')),
    'response': ('response to noise', 'Response', {}, ('start:0.02', 'start:0.2', 'start:0.5')),
    # Controls: spatial patterns and similarities without Lipschitz constants.
    'principal': ('principal patterns', 'PrincipalPatterns', {}, ('start:0.2', 'start:0.5')),
    'at': ('AT', 'ATLoss', {}, ('start:0.02', 'start:0.2')),
    'sp': ('SP', 'SPLoss', {}, ('start:0.02', 'start:0.2')),
}
_beside = {
    'kd': list(_forms),
    'ofd': ['patterns', 'principal', 'response', 'at'],
    'kd-ofd': ['patterns', 'principal', 'response', 'at'],
}


def _run(title, terms, against):
    options = _few | {'model.terms': terms}
    return dict(config='tools/bench/forms/digits.py', title=title, options=options, needs=_teacher, against=against)


runs = dict(
    teacher=dict(config='configs/digits/wrn16-4_1xb30_digits.py', title='teacher (WRN16-4, 898 scans)'),
    alone=dict(config='configs/digits/wrn10-1_1xb30_digits300.py', title='student alone (WRN10-1)', options=_few),
)
for _name, (_title, _terms) in _taught.items():
    runs[_name] = _run(_title, _terms, 'alone')
runs['kd-noise'] = _run('KD + KD under noise', _kd | _term('KDOnNoise', 'start:0.5', 'logits'), 'kd')
_smooth = dict(loss_kd=_kd['loss_kd'] | dict(loss=dict(type='lckd_mm.SmoothKD')))
runs['smooth-kd'] = _run('KD weighted by smoothness', _smooth, 'kd')
for _base, _names in _beside.items():
    for _name in _names:
        _title, _loss, _arguments, _parts = _forms[_name]
        for _part in _parts:
            _terms = _taught[_base][1] | _term(_loss, _part, **_arguments)
            _number = str(_part).removeprefix('start:')
            runs[f'{_base}-{_name}-{_number}'] = _run(f'{_taught[_base][0]} + {_title}, {_number}', _terms, _base)
for _base in ('ofd', 'kd-ofd'):
    for _weight in (0.3, 3.0):
        _terms = _taught[_base][1] | _term('LipschitzLoss', _weight)
        _terms['loss_lipschitz']['connector'] = 'loss_ofd'
        _title = f'{_taught[_base][0]} + σ of connected maps, {_weight}'
        runs[f'{_base}-london-{_weight}'] = _run(_title, _terms, _base)
