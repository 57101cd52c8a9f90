# Which gap, and plain or normalised maps: FCN on the digit scenes, beside KD, one teacher for all.
title = 'Raw Lipschitz matching beside KD: FCN on digit scenes'
metric = dict(key='mIoU', title='mIoU')
work_dir = 'work_dirs/studies/gaps-segmentation'
prepare = [['tools/prepare_data.py', 'digit-scenes', '--out', 'data/digit_scenes']]

_scenes = 'configs/demo/{}_1xb8-digit-scenes-96x96.py'
# Weights that make the term about 5 % of the loss over the first 200 iterations of seed 100, which is not reported.
_weights = {
    ('log', 'plain'): 0.45,
    ('log', 'normalised'): 3.3,
    ('relative', 'plain'): 1.1,
    ('absolute', 'plain'): 0.00033,
}
axes = dict(
    gap={
        f'{_gap}, {_maps}': {
            f'model.terms.{_term}.{_key}': _value
            for _term in ['loss_lipschitz']
            for _key, _value in (('loss.gap', _gap), ('loss.normalise', _maps == 'normalised'), ('weight', _weight))
        }
        for (_gap, _maps), _weight in _weights.items()
    }
)
_teacher = {'model.teacher.checkpoint': 'teacher'}
runs = dict(
    teacher=dict(config=_scenes.format('fcn_r18-w32'), title='teacher (FCN-R18-w32)', seed=0),
    alone=dict(config=_scenes.format('fcn_r18-w8'), title='student alone (FCN-R18-w8)'),
    kd=dict(config=_scenes.format('kd_fcn_r18-w32_fcn_r18-w8'), title='KD', needs=_teacher, against='alone'),
    gaps=dict(
        config=_scenes.format('kd-rawlip_fcn_r18-w32_fcn_r18-w8'),
        title='KD + raw Lipschitz',
        needs=_teacher,
        axes=['gap'],
        against='kd',
    ),
)
