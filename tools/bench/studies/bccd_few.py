# Methods of dense detectors where there are few labels: 40 of BCCD's 205 training images, for teacher and student.
# The nets, methods and parts of the loss are those of bccd.py.
_base_ = './bccd.py'
title = 'BCCD, 40 labelled images'
work_dir = 'work_dirs/bccd-few'

# All 205 images without their boxes, beside the 40 with them.
_unlabelled = dict(
    type='lckd_mm.UnlabelledHook',
    batch_size=4,
    dataset=dict(
        type='XMLDataset',
        data_root='data/bccd',
        metainfo=dict(classes=('RBC', 'WBC', 'Platelets')),
        data_prefix=dict(sub_data_root=''),
        ann_file='ImageSets/Main/train.txt',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(160, 120), keep_ratio=True),
            dict(type='RandomFlip', prob=0.75, direction=['horizontal', 'vertical', 'diagonal']),
            dict(type='PackDetInputs'),
        ],
    ),
)
_kd = dict(loss=dict(type='lckd_mm.KDLoss', tau=2.0), on='logits', weight='start:0.25')
_few = {'train_dataloader.dataset.indices': 40}
runs = {name: dict(options=_few) for name in _base_.runs}
runs['kd-unlabelled'] = dict(
    config='configs/bccd/kd_retinanet_m-v2_retinanet_r18-w8_1xb4-bccd-160x120.py',
    title='RetinaNet: KD, half of it on unlabelled images',
    options=_few
    | {'model.terms': dict(loss_kd=_kd, loss_more=_kd | dict(images='unlabelled')), 'custom_hooks': [_unlabelled]},
    needs={'model.teacher.checkpoint': 'teacher'},
    against='alone',
)
# The student alone for as long as that takes: a step that also learns from 4 unlabelled images takes 3.2 times as long.
runs['as-long'] = dict(
    _base_.runs['longer'],
    title='RetinaNet: student alone, 2,600 steps',
    options=_few | {'train_cfg.max_iters': 2600, 'param_scheduler.0.total_steps': 2600},
)
