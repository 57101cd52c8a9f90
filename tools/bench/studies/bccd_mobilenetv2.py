# KD and OFD for a RetinaNet on MobileNetV2 of a quarter of the width, which learns slowly (docs/studies.md).
title = 'BCCD: RetinaNet on MobileNetV2'
metric = dict(key='pascal_voc/mAP', title='mAP at 0.5 and 0.7, %', scale=100)
work_dir = 'work_dirs/bccd-mobilenetv2'

_cells = 'configs/bccd/{}_1xb4-bccd-160x120.py'
_alone = dict(config=_cells.format('retinanet_m-v2-w25'))
# As long as CrossKD takes for 800 steps.
_longer = {'train_cfg.max_iters': 2320, 'param_scheduler.0.total_steps': 2320}


def _taught(term, part, title='', against='alone', **options):
    name = term.upper()
    return dict(
        config=_cells.format(f'{term}_retinanet_m-v2_retinanet_m-v2-w25'),
        title=f'RetinaNet: {name}{title}',
        needs={'model.teacher.checkpoint': 'teacher'},
        against=against,
        options={f'model.terms.loss_{term}.weight': f'start:{part}', **options},
    )


runs = {
    'teacher': dict(config=_cells.format('retinanet_m-v2'), title='RetinaNet: teacher'),
    'alone': dict(_alone, title='RetinaNet: student alone'),
    'longer': dict(_alone, title='RetinaNet: student alone, 2,320 steps', options=_longer, against='alone'),
    'kd': _taught('kd', 0.9),
    'kd-longer': _taught('kd', 0.9, ', 2,320 steps', 'longer', **_longer),
    'ofd': _taught('ofd', 0.9),
    'kd-0.5': _taught('kd', 0.5, ', 0.5'),
    'ofd-0.3': _taught('ofd', 0.3, ', 0.3'),
    'ofd-0.97': _taught('ofd', 0.97, ', 0.97'),
}
