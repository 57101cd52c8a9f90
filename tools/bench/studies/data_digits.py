# How the gain depends on the number of training scans, and on wrong labels: WRN16-4 teaches WRN10-1.
title = 'Training scans and wrong labels'
metric = dict(key='accuracy/top1', title='accuracy, %')
work_dir = 'work_dirs/digits'

_digits = 'configs/digits/{}_1xb30_digits300.py'
_data = 'train_dataloader.dataset.'
axes = {
    'wrong labels': {'0 %': {}, '30 %': {f'{_data}label_noise': 0.3}},
    'scans': {'50': {f'{_data}subset': 50}, '100': {f'{_data}subset': 100}, '300': {}},
}
_teacher = {'model.teacher.checkpoint': 'teacher'}
_taught = dict(needs=_teacher, axes=list(axes))
runs = dict(
    # Its scans are all of the first half, with right labels.
    teacher=dict(config='configs/digits/wrn16-4_1xb30_digits.py', title='teacher (WRN16-4)'),
    alone=dict(config=_digits.format('wrn10-1'), title='student alone (WRN10-1)', axes=list(axes)),
    kd=dict(config=_digits.format('kd_wrn16-4_wrn10-1'), title='KD', against='alone', **_taught),
    lckd=dict(
        config=_digits.format('lckd-kd_wrn16-4_wrn10-1'),
        title='KD + raw Lipschitz, log',
        options={'model.terms.loss_lipschitz.weight': 0.15},
        against='kd',
        **_taught,
    ),
)
picture = dict(x='scans')
