# RetinaNet on ResNet-18 of a sixteenth of the width, 0.07 M parameters, which its teacher surpasses by more than the
# student of bccd.py does; 1,600 steps. The teachers are those of bccd.py. The protocol is in docs/studies.md.
title = 'BCCD: a student of a sixteenth of the width'
metric = dict(key='pascal_voc/mAP', title='mAP at 0.5 and 0.7, %', scale=100)
work_dir = 'work_dirs/bccd'

_cells = 'configs/bccd/{}_1xb4-bccd-160x120.py'
_nets = 'retinanet_m-v2_retinanet_r18-w8'
_longer = {'train_cfg.max_iters': 1600, 'param_scheduler.0.total_steps': 1600}
_taught = dict(needs={'model.teacher.checkpoint': 'teacher'}, against='w4-alone')


def _narrow(path):
    return {
        f'{path}backbone.base_channels': 4,
        f'{path}backbone.stem_channels': 4,
        f'{path}neck.in_channels': [4, 8, 16, 32],
        f'{path}neck.out_channels': 16,
        f'{path}bbox_head.in_channels': 16,
        f'{path}bbox_head.feat_channels': 16,
        f'{path}bbox_head.stacked_convs': 2,
        f'{path}bbox_head.norm_cfg.num_groups': 4,
    }


runs = {
    'teacher': dict(config=_cells.format('retinanet_m-v2'), title='teacher'),
    'w4-alone': dict(
        config=_cells.format('retinanet_r18-w8'), title='student alone', options=_narrow('model.') | _longer
    ),
    'w4-short': dict(
        config=_cells.format('retinanet_r18-w8'), title='student alone, 800 steps', options=_narrow('model.'),
        against='w4-alone',
    ),
    'w4-kd': dict(
        config=_cells.format(f'kd_{_nets}'), title='KD', options=_narrow('model.student.') | _longer, **_taught
    ),
    'w4-ofd': dict(
        config=_cells.format(f'ofd_{_nets}'), title='OFD', options=_narrow('model.student.') | _longer, **_taught
    ),
}  # fmt: skip
