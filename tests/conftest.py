"""Shared fixtures: a default scope that does not outlive its test, and the smallest models of each host."""

import functools
import itertools
import os
import sys

import pytest
import torch

_NAMES = itertools.count()


def pytest_collection_modifyitems(items):
    """Tests marked ``full`` run under `make test-all` alone."""
    if os.environ.get('LCKD_TEST_COUNTS') == 'full':
        return
    for item in items:
        if item.get_closest_marker('full'):
            item.add_marker(pytest.mark.skip(reason='takes long: runs under `make test-all`'))


@pytest.fixture(autouse=True, scope='session')
def _mmengine_does_it_once():
    """It lays out a run's config five times, and reads all metafiles of a package for each of its configs.

    Both would take longer than the few steps of most runs here.
    """
    from mmengine.config import config, utils

    @functools.lru_cache(maxsize=64)
    def formatted(text, style):
        return format_code(text, style_config=dict(style))

    format_code, load = config.FormatCode, utils.load
    config.FormatCode = lambda text, style_config: formatted(text, tuple(style_config.items()))
    utils.load = functools.cache(load)
    yield
    config.FormatCode, utils.load = format_code, load


@pytest.fixture(autouse=True, scope='session')
def _files_as_in_the_tools():
    from lckd_mm.storage.files import install

    install()


@pytest.fixture(autouse=True)
def _no_leaked_managers():
    """mmengine keeps scopes, loggers, message hubs and visualizers in globals by name: drop them after each test."""
    yield
    if 'mmengine' not in sys.modules:
        return
    from mmengine.logging import MMLogger
    from mmengine.utils import ManagerMixin

    for logger in MMLogger._instance_dict.values():
        for handler in list(logger.handlers):
            handler.close()
    pending = [ManagerMixin]
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        kind._instance_dict.clear()


@pytest.fixture
def scope():
    """``scope('mmseg')`` sets the default scope, as a Runner does, until the test ends."""
    from mmengine.registry import DefaultScope

    def set_default_scope(name):
        DefaultScope.get_instance(f'test-{next(_NAMES)}', scope_name=name)

    return set_default_scope


NORM = dict(type='BN', requires_grad=True)
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


@pytest.fixture
def tiny_fcn():
    """``tiny_fcn(depth=18, width=8, classes=5)``: an mmseg FCN with an auxiliary head, for images of 32 x 32."""

    def model(depth=18, width=8, classes=5, **overrides):
        deepest = 8 * width * (1 if depth < 50 else 4)

        def head(weight, **extra):
            loss = dict(type='CrossEntropyLoss', loss_weight=weight)
            return dict(type='FCNHead', num_convs=1, concat_input=False, num_classes=classes, norm_cfg=NORM,
                        loss_decode=loss, **extra)  # fmt: skip

        return dict(
            type='EncoderDecoder',
            data_preprocessor=dict(type='SegDataPreProcessor', mean=MEAN, std=STD, bgr_to_rgb=True, seg_pad_val=255,
                                   size=(32, 32)),
            backbone=dict(type='ResNetV1c', depth=depth, base_channels=width, stem_channels=8, strides=(1, 2, 1, 1),
                          dilations=(1, 1, 2, 4), norm_cfg=NORM, norm_eval=False, contract_dilation=True),
            decode_head=head(1.0, in_channels=deepest, in_index=3, channels=16),
            auxiliary_head=head(0.4, in_channels=deepest // 2, in_index=2, channels=8),
            test_cfg=dict(mode='whole'),
        ) | overrides  # fmt: skip

    return model


@pytest.fixture
def tiny_classifier():
    """``tiny_classifier(depth=18, width=8, classes=10)``: an mmpretrain ResNet for images of 32 x 32."""

    def model(depth=18, width=8, classes=10, **overrides):
        mean, std = [125.307, 122.961, 113.8575], [51.5865, 50.847, 51.255]
        return dict(
            type='ImageClassifier',
            data_preprocessor=dict(type='ClsDataPreprocessor', num_classes=classes, mean=mean, std=std, to_rgb=False),
            backbone=dict(type='ResNet_CIFAR', depth=depth, stem_channels=width, base_channels=width),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=classes, in_channels=8 * width * (1 if depth < 50 else 4),
                      loss=dict(type='CrossEntropyLoss')),
        ) | overrides  # fmt: skip

    return model


@pytest.fixture
def tiny_detector():
    """``tiny_detector(depth=18, width=8, classes=3)``: an mmdet RetinaNet with three levels and two anchors."""

    def model(depth=18, width=8, classes=3, **overrides):
        expansion = 1 if depth < 50 else 4
        return dict(
            type='RetinaNet',
            data_preprocessor=dict(type='DetDataPreprocessor', mean=MEAN, std=STD, bgr_to_rgb=True,
                                   pad_size_divisor=32),
            backbone=dict(type='ResNet', depth=depth, base_channels=width, stem_channels=8, frozen_stages=-1,
                          norm_cfg=NORM, norm_eval=False),
            neck=dict(type='FPN', in_channels=[width * 2**i * expansion for i in range(4)], out_channels=16,
                      start_level=1, add_extra_convs='on_input', num_outs=3),
            bbox_head=dict(type='RetinaHead', num_classes=classes, in_channels=16, stacked_convs=1, feat_channels=16,
                           anchor_generator=dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=1,
                                                 ratios=[0.5, 1.0], strides=[8, 16, 32]),
                           loss_cls=dict(type='FocalLoss', use_sigmoid=True), loss_bbox=dict(type='L1Loss')),
            train_cfg=dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
                           sampler=dict(type='PseudoSampler'), allowed_border=-1, pos_weight=-1),
            test_cfg=dict(nms_pre=100, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=20),
        ) | overrides  # fmt: skip

    return model


@pytest.fixture
def save_teacher():
    """``save_teacher(path, model, 'mmseg')`` writes a checkpoint of a freshly initialised model; gives the path."""

    def save(path, model, scope):
        from lckd_mm.contexts import preserved_rng
        from lckd_mm.hosts import build_model

        with preserved_rng(seed=7):
            built = build_model(model, scope)
            built.init_weights()
        torch.save(dict(state_dict=built.state_dict()), path)
        return str(path)

    return save
