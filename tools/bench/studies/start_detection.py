# Chooses how a recipe weighs OFD and KD on a dense detector (RetinaNet): by the weight of the demo, or by a share.
# Run with --first-seed 100 --seeds 3: no other table reports these seeds.
title = 'The weights of OFD and KD as a number and as a share: RetinaNet on digit scenes'
metric = dict(key='pascal_voc/mAP', title='mAP, %', scale=100)
work_dir = 'work_dirs/studies/start-detection'
prepare = [['tools/prepare_data.py', 'digit-scenes', '--out', 'data/digit_scenes']]

_scenes = 'configs/demo/{}_1xb8-digit-scenes-96x96.py'
_pair = _scenes.format('{}_retinanet_r18-w32_retinanet_r18-w8')
_teacher = {'model.teacher.checkpoint': 'teacher'}
axes = dict(
    weight={
        str(_w): {'model.terms.loss_ofd.weight': _w}
        for _w in (1e-3, 'share:0.9', 'start:0.7', 'start:0.9', 'start:0.95')
    },
    scores={str(_w): {'model.terms.loss_kd.weight': _w} for _w in (20.0, 'start:0.5', 'start:0.9')},
)
runs = dict(
    teacher=dict(config=_scenes.format('retinanet_r18-w32'), title='teacher (RetinaNet-R18-w32)'),
    ofd=dict(config=_pair.format('ofd'), title='OFD', needs=_teacher, axes=['weight']),
    kd=dict(config=_pair.format('kd'), title='KD', needs=_teacher, axes=['scores']),
)
