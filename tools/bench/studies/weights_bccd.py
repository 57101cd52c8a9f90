# Chooses the parts of the loss with which the study of BCCD weighs scores (by KD) and features (by OFD), on RetinaNet.
# Run with --first-seed 100 --seeds 3: the study reports other seeds. The teachers are the study's own.
title = 'BCCD: the parts of KD and of OFD'
metric = dict(key='pascal_voc/mAP', title='mAP at 0.5 and 0.7, %', scale=100)
work_dir = 'work_dirs/bccd'

_cells = 'configs/bccd/{}_1xb4-bccd-160x120.py'
_nets = 'retinanet_m-v2_retinanet_r18-w8'
_taught = dict(needs={'model.teacher.checkpoint': 'teacher'}, against='alone')
axes = dict(
    scores={f'{_part}': {'model.terms.loss_kd.weight': f'start:{_part}'} for _part in (0.2, 0.5, 0.9)},
    features={f'{_part}': {'model.terms.loss_ofd.weight': f'start:{_part}'} for _part in (0.2, 0.5, 0.9)},
)
runs = dict(
    teacher=dict(config=_cells.format('retinanet_m-v2'), title='RetinaNet: teacher'),
    alone=dict(config=_cells.format('retinanet_r18-w8'), title='RetinaNet: student alone'),
    kd=dict(config=_cells.format(f'kd_{_nets}'), title='KD', axes=['scores'], **_taught),
    ofd=dict(config=_cells.format(f'ofd_{_nets}'), title='OFD', axes=['features'], **_taught),
)
