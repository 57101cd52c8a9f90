"""Small models of the three hosts, their data on digit scenes, and whole runs through mmengine's Runner."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from scenes.digit_scenes import write_digit_scenes
from scenes.scene import CLASSES

from lckd_mm.hosts import build_model, fabricate_samples

ROOT = Path(__file__).resolve().parents[1]
#: `make test-all`: every count as the README states it; `make test` has smaller ones, to stay below ten minutes.
FULL = os.environ.get('LCKD_TEST_COUNTS') == 'full'


def count(full, reduced):
    """How often to repeat: ``full`` under `make test-all`, ``reduced`` under `make test`."""
    return full if FULL else reduced


NORM = dict(type='BN')
STAGES = {f'stage{i}': f'backbone.layer{i}@preact' for i in range(1, 5)}


def preprocessor(kind, **extra):
    return dict(type=kind, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], **extra)


def segmentor(width, depth=18, classes=11, size=64):
    deepest = width * (8 if depth < 50 else 32)

    def head(weight, **extra):
        loss = dict(type='CrossEntropyLoss', loss_weight=weight)
        return dict(type='FCNHead', channels=8, num_classes=classes, norm_cfg=NORM, loss_decode=loss, num_convs=1,
                    concat_input=False, **extra)  # fmt: skip

    return dict(
        type='EncoderDecoder',
        data_preprocessor=preprocessor('SegDataPreProcessor', bgr_to_rgb=True, size=(size, size)),
        backbone=dict(type='ResNetV1c', depth=depth, base_channels=width, stem_channels=8, strides=(1, 2, 1, 1),
                      dilations=(1, 1, 1, 1), norm_cfg=NORM, norm_eval=False),
        decode_head=head(1.0, in_channels=deepest, in_index=3),
        test_cfg=dict(mode='whole'),
        auxiliary_head=head(0.4, in_channels=deepest // 2, in_index=2),
    )  # fmt: skip


def classifier(width):
    return dict(
        type='ImageClassifier',
        backbone=dict(type='ResNet', depth=18, base_channels=width, stem_channels=width, norm_cfg=NORM),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=10, in_channels=8 * width, loss=dict(type='CrossEntropyLoss')),
    )


def detector(width, classes=10):
    return dict(
        type='RetinaNet',
        data_preprocessor=preprocessor('DetDataPreprocessor', bgr_to_rgb=True, pad_size_divisor=32),
        backbone=dict(type='ResNet', depth=18, base_channels=width, stem_channels=width, frozen_stages=-1,
                      norm_cfg=NORM, norm_eval=False),
        neck=dict(type='FPN', in_channels=[width, 2 * width, 4 * width, 8 * width], out_channels=8, num_outs=4),
        bbox_head=dict(type='RetinaHead', num_classes=classes, in_channels=8, stacked_convs=1, feat_channels=8,
                       anchor_generator=dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=1,
                                             ratios=[1.0], strides=[4, 8, 16, 32])),
        train_cfg=dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
                       sampler=dict(type='PseudoSampler'), allowed_border=-1, pos_weight=-1),
        test_cfg=dict(nms_pre=100, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=20),
    )  # fmt: skip


def segmentation_data(root, split):
    return dict(
        type='BaseSegDataset',
        data_root=str(root),
        ann_file=f'ImageSets/Segmentation/{split}.txt',
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
        img_suffix='.jpg',
        seg_map_suffix='.png',
        metainfo=dict(classes=CLASSES, palette=[[i, i, i] for i in range(11)]),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='PhotoMetricDistortion'),
            dict(type='PackSegInputs'),
        ],
    )


def detection_data(root, split):
    return dict(
        type='XMLDataset',
        data_root=str(root),
        ann_file=f'ImageSets/Main/{split}.txt',
        data_prefix=dict(sub_data_root=''),
        metainfo=dict(classes=CLASSES[1:], palette=None),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackDetInputs'),
        ],
    )


def classification_data(root, split):
    return dict(
        type='CustomDataset',
        data_prefix=str(root / 'JPEGImages'),
        ann_file=str(root / 'classes.txt'),
        metainfo=dict(classes=[str(i) for i in range(10)]),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='RandomCrop', crop_size=48),
            dict(type='PackInputs'),
        ],
    )


# scope, model by width, data, term's logits, extra config of the whole
HOSTS = {
    'mmseg': (segmentor, segmentation_data, dict(logits='decode_head.conv_seg'), {}),
    'mmpretrain': (
        classifier,
        classification_data,
        dict(logits='head.fc'),
        dict(data_preprocessor=preprocessor('ClsDataPreprocessor', to_rgb=True, num_classes=10)),
    ),
    'mmdet': (detector, detection_data, dict(logits='bbox_head.retina_cls#*'), {}),
}


def config(host, root, work_dir, model, iters=20, **extra):
    _, data, _, more = HOSTS[host]
    return Config(
        dict(
            default_scope=host,
            model=model,
            work_dir=str(work_dir),
            train_dataloader=dict(
                batch_size=2,
                num_workers=0,
                sampler=dict(type='InfiniteSampler', shuffle=True),
                dataset=data(root, 'train'),
            ),
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=iters, val_interval=iters),
            optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.02, momentum=0.9)),
            param_scheduler=dict(type='PolyLR', power=0.9, by_epoch=False, begin=0, end=iters),
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=5),
                checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=10),
            ),
            log_processor=dict(by_epoch=False),
            randomness=dict(seed=3),
            log_level='WARNING',
            **more,
            **extra,
        ),
        format_python_code=False,
    )


def validation(root):
    return dict(
        val_dataloader=dict(
            batch_size=2,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=segmentation_data(root, 'val'),
        ),
        val_cfg=dict(type='ValLoop'),
        val_evaluator=dict(type='IoUMetric'),
    )


def evaluation(host, root):
    """A test on the training images, as they are."""
    dataset = HOSTS[host][1](root, 'train')
    dropped = ('RandomFlip', 'RandomCrop', 'PhotoMetricDistortion')
    dataset['pipeline'] = [step for step in dataset['pipeline'] if step['type'] not in dropped]
    if host == 'mmdet':
        dataset['pipeline'].insert(-1, dict(type='Resize', scale=(64, 64), keep_ratio=True))
    evaluators = dict(
        mmseg=dict(type='IoUMetric'), mmdet=dict(type='VOCMetric', metric='mAP'), mmpretrain=dict(type='Accuracy')
    )
    return dict(
        test_dataloader=dict(
            batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False), dataset=dataset
        ),
        test_cfg=dict(type='TestLoop'),
        test_evaluator=evaluators[host],
    )


def distiller(host, student, teacher, path, lipschitz=1.0, kd=1.0, **lipschitz_term):
    return dict(
        type='lckd_mm.Distiller',
        student=student,
        teacher=dict(model=teacher, checkpoint=str(path)),
        taps=dict(STAGES, **HOSTS[host][2]),
        terms=dict(
            loss_lipschitz=dict(
                loss=dict(type='lckd_mm.LipschitzLoss'), on=list(STAGES), weight=lipschitz,
                **(lipschitz_term or dict(connector=dict(type='lckd_mm.ConvBN'))),
            ),
            loss_kd=dict(loss=dict(type='lckd_mm.KDLoss'), on='logits', weight=kd),
        ),
    )  # fmt: skip


def distillation(host, teacher_file, **terms):
    """A Distiller of a narrow net with these terms only."""
    teacher, path = teacher_file(host)
    return distiller(host, HOSTS[host][0](4), teacher, path) | dict(terms=terms)


def run(cfg, *hooks):
    """Train; ``hooks`` are registered beside the config's, after them."""
    DefaultScope._instance_dict.clear()
    cfg.experiment_name = f'run-{abs(hash(cfg.work_dir))}-{run.count}'
    run.count += 1
    runner = Runner.from_cfg(cfg)
    for hook in hooks:
        runner.register_hook(hook, priority='LOWEST')
    runner.train()
    return runner


run.count = 0


def forked_trainings(*hosts):
    """For a fixture: yields ``train(config file, work_dir, *options, **job)`` -> (exit statuses, what the run printed).

    tools/train.py's main in a process of its own, forked from one that has imported ``hosts``; see forked_training.py.
    """
    env = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES='')
    server = subprocess.Popen(
        [sys.executable, '-W', 'ignore', ROOT / 'tests' / 'forked_training.py', *hosts],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, cwd=ROOT,
    )  # fmt: skip

    def train(cfg_file, work_dir, *options, **job):
        work_dir = Path(work_dir)
        work_dir.mkdir(exist_ok=True, parents=True)
        log = job.pop('log', work_dir / 'output.txt')
        argv = [str(cfg_file), '--work-dir', str(work_dir), *options]
        if job.get('ranks', 1) > 1:
            with socket.socket() as probe:
                probe.bind(('127.0.0.1', 0))
                port = probe.getsockname()[1]
            job['env'] = dict(job.get('env', {}), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
            argv += ['--launcher', 'pytorch']
        server.stdin.write(json.dumps(dict(job, argv=argv, log=str(log))) + '\n')
        server.stdin.flush()
        return json.loads(server.stdout.readline()), Path(log).read_text()

    yield train
    server.stdin.close()
    server.wait(60)


def scalars(work_dir):
    (file,) = Path(work_dir).glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in file.read_text().splitlines()]


def hooks_in(model):
    """The modules that have a forward or backward hook, and its kind."""
    kinds = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks')
    return [(name, kind) for name, module in model.named_modules() for kind in kinds if getattr(module, kind)]


HOOK = dict(type='lckd_mm.DistillationHook')


@pytest.fixture(scope='session')
def scenes(tmp_path_factory):
    """Small digit scenes, also as a classification set: classes.txt lists the training images."""
    root = write_digit_scenes(tmp_path_factory.mktemp('data') / 'scenes', train=16, val=4, size=64, progress=False)
    lines = [f'train_{i:06d}.jpg {i % 10}' for i in range(16)]
    (root / 'classes.txt').write_text('\n'.join(lines) + '\n')
    return root


@pytest.fixture
def teacher_file(tmp_path):
    def save(host, width=8):
        cfg = HOSTS[host][0](width)
        torch.manual_seed(7)
        model = build_model(cfg, host)
        torch.save(dict(state_dict=model.state_dict()), tmp_path / f'teacher-{host}.pth')
        return cfg, tmp_path / f'teacher-{host}.pth'

    return save


@pytest.fixture
def built(teacher_file, scope):
    """``built('mmseg', width=8, terms=…)``: a Distiller in training, four images and their samples.

    ``taps`` are added to the usual ones, ``terms`` replace them; other keywords are the student's backbone's.
    """

    def build(host='mmseg', width=4, terms=None, taps=(), bn='eval', prepare=lambda cfg: None, **backbone):
        teacher, file = teacher_file(host)
        student = HOSTS[host][0](width)
        if host == 'mmpretrain':
            student['data_preprocessor'] = HOSTS[host][3]['data_preprocessor']
        student['backbone'].update(backbone)
        cfg = distiller(host, student, teacher, file) | dict(dry_run_size=64)
        cfg['teacher']['bn'] = bn
        cfg['taps'].update(taps)
        cfg['terms'] = terms or cfg['terms']
        prepare(cfg)
        scope(host)
        torch.manual_seed(0)
        model = build_model(cfg, host)
        model.init_weights()
        torch.manual_seed(1)
        return model.train(), torch.randn(4, 3, 64, 64), fabricate_samples(model.student, 4, (64, 64))

    return build
