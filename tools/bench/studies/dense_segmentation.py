# The methods of segmentors: FCN on the digit scenes. Their costs, compared with those of KD:
# python tools/bench/overhead.py tools/bench/studies/dense_segmentation.py
title = 'Methods of segmentors: FCN on digit scenes'
metric = dict(key='mIoU', title='mIoU')
work_dir = 'work_dirs/studies/dense_segmentation'
base = 'kd'
prepare = [['tools/prepare_data.py', 'digit-scenes', '--out', 'data/digit_scenes']]

_scenes = 'configs/demo/{}_1xb8-digit-scenes-96x96.py'
_pair = _scenes.format('{}_fcn_r18-w32_fcn_r18-w8')
_taught = dict(needs={'model.teacher.checkpoint': 'teacher'}, against='kd')
runs = dict(
    teacher=dict(config=_scenes.format('fcn_r18-w32'), title='teacher (FCN-R18-w32)'),
    alone=dict(config=_scenes.format('fcn_r18-w8'), title='student alone (FCN-R18-w8)'),
    kd=dict(config=_pair.format('kd'), title='KD', needs={'model.teacher.checkpoint': 'teacher'}, against='alone'),
)
for _name, _title in {
    'kd-standardised': 'KD, standardised scores',
    'cwd': 'CWD of the scores',
    'cwd-feature': 'CWD of the map before them',
    'dist': 'DIST',
    'mgd': 'MGD',
}.items():
    runs[_name] = dict(config=_pair.format(_name), title=_title, **_taught)
