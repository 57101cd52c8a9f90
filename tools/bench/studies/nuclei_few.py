# Segmentation where there are few labels: 10 of the 369 training images of nuclei, for teacher and student.
# The nets and methods are those of nuclei.py.
_base_ = './nuclei.py'
title = 'Nuclei, 10 labelled images: DeepLabV3+'
work_dir = 'work_dirs/nuclei-few'

# All 369 images without their masks, beside the 10 with them.
_unlabelled = dict(
    type='lckd_mm.UnlabelledHook',
    batch_size=8,
    dataset=dict(
        type='BaseSegDataset',
        data_root='data/nuclei',
        metainfo=dict(classes=('background', 'nucleus', 'border')),
        data_prefix=dict(img_path='images'),
        img_suffix='.png',
        ann_file='train.txt',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='RandomCrop', crop_size=(96, 96)),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='RandomFlip', prob=0.5, direction='vertical'),
            dict(type='PackSegInputs'),
        ],
    ),
)
_few = {'train_dataloader.dataset.indices': 10}
runs = {name: dict(options=_few) for name in _base_.runs}
for _part in (0.5, 0.9):
    _kd = dict(loss=dict(type='lckd_mm.KDLoss', tau=2.0), on='logits', weight=f'start:{_part / 2}')
    _terms = dict(loss_kd=_kd, loss_unlabelled=_kd | dict(images='unlabelled'))
    runs[f'unlabelled-{_part}'] = dict(
        config='configs/nuclei/kd_deeplabv3plus_m-v2-d16_deeplabv3plus_r18-w8-d16_1xb8-nuclei-96x96.py',
        title=f'KD of {_part}, half of it on unlabelled images',
        options=_few | {'model.terms': _terms, 'custom_hooks': [_unlabelled]},
        needs={'model.teacher.checkpoint': 'teacher'},
        against='alone',
    )
runs['kd-0.9'] = dict(_base_.runs['kd'], title='KD of 0.9', options=_few | {'model.terms.loss_kd.weight': 'start:0.9'})
# As many steps as the student alone has in its longer training.
_longer = {'train_cfg.max_iters': 2200, 'param_scheduler.0.total_steps': 2200}
runs['unlabelled-longer'] = dict(
    runs['unlabelled-0.9'],
    title=runs['unlabelled-0.9']['title'] + ', 2,200 steps',
    options=runs['unlabelled-0.9']['options'] | _longer,
    against='longer',
)
# The student alone for as long as these two take: a step with 8 unlabelled images takes 3.4 times as long.
for _name, _steps in (('as-long', 2700), ('longer-as-long', 7500)):
    runs[_name] = dict(
        _base_.runs['longer'],
        title=f'student alone, {_steps:,} steps',
        options=_few | {'train_cfg.max_iters': _steps, 'param_scheduler.0.total_steps': _steps},
    )
