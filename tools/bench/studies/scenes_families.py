# Two-stage detectors, masks and queries on the digit scenes: what the teacher says of the same regions and queries,
# or the features of the pyramid.
title = 'Digit scenes: Faster R-CNN, Mask R-CNN, Deformable DETR'
metric = dict(key='coco/bbox_mAP', title='box AP, %', scale=100)
work_dir = 'work_dirs/scenes-families'
base = 'mask-alone'
prepare = [['tools/prepare_data.py', 'digit-scenes', '--out', 'data/digit_scenes']]

_scenes = 'configs/scenes/{}_1xb8-digit-scenes-96x96.py'
_pairs = 'configs/_base_/pairs/{}_digit-scenes.py'
_faster = 'mask-rcnn_r18-w32_faster-rcnn_r18-w8'
_mask = 'mask-rcnn_r18-w32_mask-rcnn_r18-w8'
_detr = 'deformable-detr_r18-w32_deformable-detr_r18-w8'


def _taught(title, config, family, terms=None):
    return dict(
        config=config,
        title=title,
        options={'model.terms': terms} if terms else {},
        needs={'model.teacher.checkpoint': 'detr-teacher' if family == 'detr' else 'mask-teacher'},
        against=f'{family}-alone',
    )


def _pkd(levels, weight):
    loss = dict(type='lckd_mm.PKDLoss')
    return dict(loss_pkd=dict(loss=loss, on=levels, connector=dict(type='lckd_mm.ConvBN'), weight=weight))


def _longer(family, config, net, steps):
    # For about as long as the terms of this family take.
    return dict(
        config=_scenes.format(f'{config}_r18-w8'),
        title=f'{net}: student alone, {steps:,} steps',
        options={'train_cfg.max_iters': steps, 'param_scheduler.0.total_steps': steps},
        against=f'{family}-alone',
    )


_kd = dict(loss_kd=dict(loss=dict(type='lckd_mm.KDLoss', tau=1.0), on='scores', regions=True, weight='start:0.5'))
_two_stage_pkd, _query_pkd = _pkd(['p2', 'p3', 'p4'], 6.0), _pkd(['p3', 'p4'], 10.0)
runs = {
    'mask-teacher': dict(config=_scenes.format('mask-rcnn_r18-w32'), title='Mask R-CNN: teacher'),
    'detr-teacher': dict(config=_scenes.format('deformable-detr_r18-w32'), title='Deformable DETR: teacher'),
    'faster-alone': dict(config=_scenes.format('faster-rcnn_r18-w8'), title='Faster R-CNN: student alone'),
    'faster-longer': _longer('faster', 'faster-rcnn', 'Faster R-CNN', 3000),
    'faster-pkd': _taught('Faster R-CNN: PKD', _pairs.format(_faster), 'faster', _two_stage_pkd),
    'faster-kd': _taught('Faster R-CNN: scores of regions', _pairs.format(_faster), 'faster', _kd),
    'faster-regions': _taught(
        'Faster R-CNN: scores and boxes of regions', _scenes.format(f'regions_{_faster}'), 'faster'
    ),
    'mask-alone': dict(config=_scenes.format('mask-rcnn_r18-w8'), title='Mask R-CNN: student alone'),
    'mask-longer': _longer('mask', 'mask-rcnn', 'Mask R-CNN', 3000),
    'mask-pkd': _taught('Mask R-CNN: PKD', _pairs.format(_mask), 'mask', _two_stage_pkd),
    'mask-kd': _taught('Mask R-CNN: scores of regions', _pairs.format(_mask), 'mask', _kd),
    'mask-regions': _taught(
        'Mask R-CNN: scores, boxes and masks of regions', _scenes.format(f'regions_{_mask}'), 'mask'
    ),
    'detr-alone': dict(config=_scenes.format('deformable-detr_r18-w8'), title='Deformable DETR: student alone'),
    'detr-longer': _longer('detr', 'deformable-detr', 'Deformable DETR', 2200),
    'detr-pkd': _taught('Deformable DETR: PKD', _pairs.format(_detr), 'detr', _query_pkd),
    'detr-queries': _taught('Deformable DETR: queries', _scenes.format(f'queries_{_detr}'), 'detr'),
}
