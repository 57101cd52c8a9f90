# Chooses the parts of the loss with which the study of the nuclei weighs scores (by KD) and features (by OFD).
# Run with --first-seed 100 --seeds 3: the study reports other seeds. The teachers are the study's own.
title = 'Nuclei: the parts of KD and of OFD'
metric = dict(key='mIoU', title='mIoU')
work_dir = 'work_dirs/nuclei'

_nuclei = 'configs/nuclei/{}_1xb8-nuclei-96x96.py'
_nets = 'deeplabv3plus_m-v2-d16_deeplabv3plus_r18-w8-d16'
_taught = dict(needs={'model.teacher.checkpoint': 'teacher'}, against='alone')
axes = dict(
    scores={f'{_part}': {'model.terms.loss_kd.weight': f'start:{_part}'} for _part in (0.1, 0.5, 0.9)},
    features={f'{_part}': {'model.terms.loss_ofd.weight': f'start:{_part}'} for _part in (0.1, 0.5, 0.7)},
)
runs = dict(
    teacher=dict(config=_nuclei.format('deeplabv3plus_m-v2-d16'), title='teacher'),
    alone=dict(config=_nuclei.format('deeplabv3plus_r18-w8-d16'), title='student alone'),
    kd=dict(config=_nuclei.format(f'kd_{_nets}'), title='KD', axes=['scores'], **_taught),
    ofd=dict(config=_nuclei.format(f'ofd_{_nets}'), title='OFD', axes=['features'], **_taught),
)
