# Which gap, and plain or normalised maps: RetinaNet on the digit scenes, beside KD.
title = 'Raw Lipschitz matching beside KD: RetinaNet on digit scenes'
metric = dict(key='pascal_voc/mAP', title='mAP, %', scale=100)
work_dir = 'work_dirs/studies/gaps-detection'
prepare = [['tools/prepare_data.py', 'digit-scenes', '--out', 'data/digit_scenes']]

_scenes = 'configs/demo/{}_1xb8-digit-scenes-96x96.py'
# Weights that make the term about 5 % of the loss over the first 200 iterations of seed 100, which is not reported.
_weights = {
    ('log', 'plain'): 1.4,
    ('log', 'normalised'): 5.7,
    ('relative', 'plain'): 2.6,
    ('absolute', 'plain'): 0.0033,
}
axes = dict(
    gap={
        f'{_gap}, {_maps}': {
            f'model.terms.{_term}.{_key}': _value
            for _term in ['loss_lipschitz', 'loss_lipschitz_levels']
            for _key, _value in (('loss.gap', _gap), ('loss.normalise', _maps == 'normalised'), ('weight', _weight))
        }
        for (_gap, _maps), _weight in _weights.items()
    }
)
_teacher = {'model.teacher.checkpoint': 'teacher'}
runs = dict(
    teacher=dict(config=_scenes.format('retinanet_r18-w32'), title='teacher (RetinaNet-R18-w32)'),
    alone=dict(config=_scenes.format('retinanet_r18-w8'), title='student alone (RetinaNet-R18-w8)'),
    kd=dict(
        config=_scenes.format('kd_retinanet_r18-w32_retinanet_r18-w8'), title='KD', needs=_teacher, against='alone'
    ),
    gaps=dict(
        config=_scenes.format('kd-rawlip_retinanet_r18-w32_retinanet_r18-w8'),
        title='KD + raw Lipschitz',
        needs=_teacher,
        axes=['gap'],
        against='kd',
    ),
)
