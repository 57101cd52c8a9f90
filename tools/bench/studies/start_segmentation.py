# Chooses how a recipe weighs OFD on a segmentor (FCN): by the demo's weight, or by its share of the loss.
# Run with --first-seed 100 --seeds 3: no other table reports these seeds.
title = "OFD's weight as a number and as a share: FCN on digit scenes"
metric = dict(key='mIoU', title='mIoU, %')
work_dir = 'work_dirs/studies/start-segmentation'
prepare = [['tools/prepare_data.py', 'digit-scenes', '--out', 'data/digit_scenes']]

_scenes = 'configs/demo/{}_1xb8-digit-scenes-96x96.py'
_pair = _scenes.format('{}_fcn_r18-w32_fcn_r18-w8')
_teacher = {'model.teacher.checkpoint': 'teacher'}
axes = dict(
    weight={
        str(_w): {'model.terms.loss_ofd.weight': _w}
        for _w in (3e-5, 'share:0.5', 'share:0.7', 'start:0.5', 'start:0.7', 'start:0.9')
    },
)
runs = dict(
    teacher=dict(config=_scenes.format('fcn_r18-w32'), title='teacher (FCN-R18-w32)'),
    ofd=dict(config=_pair.format('ofd'), title='OFD', needs=_teacher, axes=['weight']),
)
