# Chooses the detection demo's weights: of OFD, with the levels of the pyramid or without, and of Lipschitz matching of
# the connected maps, with its gap (RetinaNet).
# Run with --first-seed 100 --seeds 3: no other table reports these seeds.
title = 'OFD and LONDON: RetinaNet on digit scenes'
metric = dict(key='pascal_voc/mAP', title='mAP, %', scale=100)
work_dir = 'work_dirs/studies/london-detection'
prepare = [['tools/prepare_data.py', 'digit-scenes', '--out', 'data/digit_scenes']]

_scenes = 'configs/demo/{}_1xb8-digit-scenes-96x96.py'
_pair = _scenes.format('{}_retinanet_r18-w32_retinanet_r18-w8')
_teacher = {'model.teacher.checkpoint': 'teacher'}
_stages, _levels = ['stage1', 'stage2', 'stage3'], ['p2', 'p3', 'p4']
axes = dict(
    weight={f'{_w:g}': {'model.terms.loss_ofd.weight': _w} for _w in (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)},
    maps={
        _name: {'model.terms.loss_ofd.on': _on, 'model.terms.loss_ofd.weight': 1e-3}
        for _name, _on in [('levels', _levels), ('stages and levels', [*_stages, *_levels])]
    },
    # Parts of the loss over the first 200 iterations of OFD alone with seed 100.
    gap={
        f'{_gap}, {_part}': {
            'model.terms.loss_ofd.weight': 1e-3,
            'model.terms.loss_lipschitz.loss.gap': _gap,
            'model.terms.loss_lipschitz.weight': _weight,
        }
        for _gap, _part, _weight in [
            ('log', '0.1 %', 0.1),
            ('relative', '0.1 %', 0.2),
            ('absolute', '0.1 %', 2.8e-4),
            ('log', '2 %', 2.0),
        ]
    },
)
runs = dict(
    teacher=dict(config=_scenes.format('retinanet_r18-w32'), title='teacher (RetinaNet-R18-w32)'),
    ofd=dict(config=_pair.format('ofd'), title='OFD', needs=_teacher, axes=['weight']),
    maps=dict(config=_pair.format('ofd'), title='OFD', needs=_teacher, axes=['maps']),
    london=dict(config=_pair.format('lckd'), title='LONDON', needs=_teacher, axes=['gap']),
)
