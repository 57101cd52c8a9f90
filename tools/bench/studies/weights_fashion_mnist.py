# Chooses the parts of the loss with which the study of Fashion-MNIST weighs scores (by KD) and features (by OFD).
# Run with --first-seed 100 --seeds 3: the study reports other seeds. The teachers are the study's own.
title = 'Fashion-MNIST: the parts of KD and of OFD'
metric = dict(key='accuracy/top1', title='accuracy, %')
work_dir = 'work_dirs/fashion-mnist'

_images = 'configs/fashion_mnist/{}_1xb32_fashion-mnist6000.py'
_nets = 'wrn16-2_wrn10-1'
_taught = dict(needs={'model.teacher.checkpoint': 'teacher'}, against='alone')
axes = dict(
    scores={f'{_part}': {'model.terms.loss_kd.weight': f'start:{_part}'} for _part in (0.5, 0.9)},
    features={f'{_part}': {'model.terms.loss_ofd.weight': f'start:{_part}'} for _part in (0.7, 0.9, 0.97)},
)
runs = dict(
    teacher=dict(config=_images.format('wrn16-2'), title='teacher'),
    alone=dict(config=_images.format('wrn10-1'), title='student alone'),
    kd=dict(config=_images.format(f'kd_{_nets}'), title='KD', axes=['scores'], **_taught),
    ofd=dict(config=_images.format(f'ofd_{_nets}'), title='OFD', axes=['features'], **_taught),
)
