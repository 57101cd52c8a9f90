# Chooses the demo's weights: of OFD, and of Lipschitz matching of the connected maps, with its gap (FCN). Then asks
# whether KD beside LONDON helps, at the gap and weight that were chosen.
# Run with --first-seed 100 --seeds 3: no other table reports these seeds.
title = 'OFD and LONDON: FCN on digit scenes'
metric = dict(key='mIoU', title='mIoU')
work_dir = 'work_dirs/studies/london-segmentation'
prepare = [['tools/prepare_data.py', 'digit-scenes', '--out', 'data/digit_scenes']]

_scenes = 'configs/demo/{}_1xb8-digit-scenes-96x96.py'
_pair = _scenes.format('{}_fcn_r18-w32_fcn_r18-w8')
_teacher = {'model.teacher.checkpoint': 'teacher'}
axes = dict(
    weight={f'{_w:g}': {'model.terms.loss_ofd.weight': _w} for _w in (1e-5, 3e-5, 1e-4)},
    # Parts of the loss over the first 200 iterations of OFD alone with seed 100.
    gap={
        f'{_gap}, {_part}': {
            'model.terms.loss_lipschitz.loss.gap': _gap,
            'model.terms.loss_lipschitz.weight': _weight,
        }
        for _gap, _part, _weight in [
            ('log', '2 %', 0.1),
            ('relative', '2 %', 0.35),
            ('absolute', '2 %', 7e-5),
            ('log', '10 %', 0.5),
            ('relative', '10 %', 1.7),
            ('absolute', '10 %', 3.5e-4),
        ]
    },
)
runs = dict(
    teacher=dict(config=_scenes.format('fcn_r18-w32'), title='teacher (FCN-R18-w32)'),
    ofd=dict(config=_pair.format('ofd'), title='OFD', needs=_teacher, axes=['weight']),
    london=dict(config=_pair.format('lckd'), title='LONDON', needs=_teacher, axes=['gap']),
    kd_london=dict(config=_pair.format('lckd-kd'), title='KD + LONDON', needs=_teacher),
)
