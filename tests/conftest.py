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


@pytest.fixture
def tiny_fcn():
    """``tiny_fcn(depth=18, width=8, classes=5)``: an mmseg FCN with an auxiliary head, for images of 32 x 32."""
    from run_helpers import segmentor

    return lambda depth=18, width=8, classes=5, **overrides: segmentor(width, depth, classes, 32) | overrides


@pytest.fixture
def tiny_classifier():
    """``tiny_classifier()``: an mmpretrain ResNet-18 with its preprocessor."""
    from run_helpers import HOSTS, classifier

    return lambda width=8: classifier(width) | HOSTS['mmpretrain'][3]


@pytest.fixture
def tiny_detector():
    """``tiny_detector()``: an mmdet RetinaNet."""
    from run_helpers import detector

    return lambda width=8, classes=3: detector(width, classes)


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
