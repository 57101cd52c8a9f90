# Every method on the digits, with equal budgets; the table of configs/digits/README.md.
title = 'Every method on the digits'
metric = dict(key='accuracy/top1', title='accuracy, %')
work_dir = 'work_dirs/digits'

_digits = 'configs/digits/{}_1xb30_digits300.py'
_taught = {
    'kd': 'KD',
    'dkd': 'DKD',
    'kd-pt': 'KD, partial: true class',
    'kd-topk': 'KD, partial: 3 largest',
    'kd-sim': 'KD, partial: similar rows',
    'kd-rel': 'KD, partial: super-classes',
    'ls': 'label smoothing',
    'fitnets': 'FitNets',
    'at': 'AT',
    'fsp': 'FSP',
    'ft': 'FT',
    'ie': 'IE',
    'ie-at': 'IE over AT',
    'ie-ofd': 'IE over OFD',
    'jacobian': 'Jacobian matching, noise',
    'ab': 'AB',
    'afd': 'AFD',
    'rkd': 'RKD',
    'lgan': 'Lipschitz critic (LGAN)',
    'ofd': 'OFD',
    'lckd-absolute': 'raw Lipschitz, absolute',
    'lckd-relative': 'raw Lipschitz, relative',
    'lckd-log': 'raw Lipschitz, log',
    'lckd-kd': 'KD + raw Lipschitz, log',
    'kd-ofd': 'KD + OFD',
    'lckd-ofd': 'LONDON, log gap (OFD + Lipschitz)',
    'lckd-ofd-kd': 'LONDON, log gap, + KD',
}
# Without a teacher: two students learn from each other.
_online = {
    'online-kd': 'online KD, two students',
    'online-afd': 'AFD (online, adversarial), two students',
    'online-ie': 'IE, mutual, two students',
}
runs = dict(
    teacher=dict(config='configs/digits/wrn16-4_1xb30_digits.py', title='teacher (WRN16-4, 898 scans)'),
    alone=dict(config=_digits.format('wrn10-1'), title='student alone (WRN10-1, 300 scans)'),
)
for _name, _title in _taught.items():
    runs[_name] = dict(
        config=_digits.format(f'{_name}_wrn16-4_wrn10-1'),
        title=_title,
        needs={'model.teacher.checkpoint': 'teacher'},
        against='alone',
    )
for _name, _title in _online.items():
    runs[_name] = dict(config=_digits.format(f'{_name}_wrn10-1_wrn10-1'), title=_title, against='alone')
