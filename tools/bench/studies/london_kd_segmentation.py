# Whether KD beside LONDON is better than LONDON alone in the demo (FCN).
# Run with --first-seed 100 --seeds 3: no other table reports these seeds.
title = 'LONDON and KD: FCN on digit scenes'
metric = dict(key='mIoU', title='mIoU')
work_dir = 'work_dirs/studies/london-kd-segmentation'
prepare = [['tools/prepare_data.py', 'digit-scenes', '--out', 'data/digit_scenes']]

_scenes = 'configs/demo/{}_1xb8-digit-scenes-96x96.py'
_pair = _scenes.format('{}_fcn_r18-w32_fcn_r18-w8')
_teacher = {'model.teacher.checkpoint': 'teacher'}
runs = dict(
    teacher=dict(config=_scenes.format('fcn_r18-w32'), title='teacher (FCN-R18-w32)'),
    london=dict(config=_pair.format('lckd'), title='LONDON', needs=_teacher),
    kd_london=dict(config=_pair.format('lckd-kd'), title='KD + LONDON', needs=_teacher, against='london'),
)
