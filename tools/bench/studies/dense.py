# The methods of dense detectors: RetinaNet on the digit scenes. Their costs, compared with those of KD:
# python tools/bench/overhead.py tools/bench/studies/dense.py
title = 'Methods of dense detectors: RetinaNet on digit scenes'
metric = dict(key='pascal_voc/mAP', title='mAP, %', scale=100)
work_dir = 'work_dirs/studies/dense'
base = 'kd'
prepare = [['tools/prepare_data.py', 'digit-scenes', '--out', 'data/digit_scenes']]

_scenes = 'configs/demo/{}_1xb8-digit-scenes-96x96.py'
_pair = _scenes.format('{}_retinanet_r18-w32_retinanet_r18-w8')
_taught = dict(needs={'model.teacher.checkpoint': 'teacher'}, against='kd')
runs = dict(
    teacher=dict(config=_scenes.format('retinanet_r18-w32'), title='teacher (RetinaNet-R18-w32)'),
    alone=dict(config=_scenes.format('retinanet_r18-w8'), title='student alone (RetinaNet-R18-w8)'),
    kd=dict(config=_pair.format('kd'), title='KD', needs={'model.teacher.checkpoint': 'teacher'}, against='alone'),
    pkd=dict(config=_pair.format('pkd'), title='PKD', **_taught),
    mgd=dict(config=_pair.format('mgd'), title='MGD', **_taught),
    swl2=dict(config=_pair.format('swl2'), title='score-weighted distance', **_taught),
    bckd=dict(config=_pair.format('bckd'), title='BCKD', **_taught),
    crosskd=dict(config=_pair.format('crosskd'), title='CrossKD', **_taught),
)
