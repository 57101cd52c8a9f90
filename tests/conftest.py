"""Shared fixtures: a default scope that does not outlive its test, and the smallest models of each host."""

import copy
import functools
import itertools
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

_NAMES = itertools.count()
#: The files that take longest, to be begun first: else one is left to the end, and the other worker waits for it.
_FIRST = (
    'test_host_models.py', 'test_interruptions.py', 'test_configs.py', 'test_report.py', 'test_end_to_end.py',
    'test_ranks.py', 'test_study.py', 'test_sweep.py', 'test_leaf_configs.py', 'test_lipschitz_report.py',
)  # fmt: skip


def pytest_configure(config):
    # xdist would begin with the files of the most tests, which are quick ones.
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Long files first; tests marked ``full`` run under `make test-all` alone."""
    items.sort(key=lambda item: _FIRST.index(item.path.name) if item.path.name in _FIRST else len(_FIRST))
    if os.environ.get('LCKD_TEST_COUNTS') == 'full':
        return
    for item in items:
        if item.get_closest_marker('full'):
            item.add_marker(pytest.mark.skip(reason='takes long: runs under `make test-all`'))


@pytest.fixture(autouse=True, scope='session')
def _mmengine_does_it_once():
    """What takes mmengine longer than the few steps of most runs here, and changes nothing in them.

    It lays out a run's config five times; reads a config of this package or a host's, with its bases, whenever it is a
    base, and all metafiles of a package for each; looks for the package among all that are installed, anew each time;
    and collects garbage after reading each data set.
    """
    import mmengine.config.config
    import mmengine.config.utils
    import mmengine.dataset.base_dataset

    config, utils, ours = mmengine.config.config, mmengine.config.utils, f'{Path(__file__).parents[1]}/configs/'
    file2dict, known = config.Config._file2dict, {}

    def once(filename, *args, **kwargs):
        path = os.path.abspath(os.path.expanduser(filename))
        if not (path.startswith(ours) or '/.mim/configs/' in path):
            return file2dict(filename, *args, **kwargs)
        key = path, args, tuple(kwargs.items())
        if key not in known:
            known[key] = file2dict(filename, *args, **kwargs)
        return copy.deepcopy(known[key])

    with pytest.MonkeyPatch.context() as patch:
        # Upstream has it by name, the fork imports it where it is used.
        for place in ('mmengine.config.config.FormatCode', 'yapf.yapflib.yapf_api.FormatCode'):
            patch.setattr(place, lambda text, **_: (text, False), raising=False)
        patch.setattr(config.Config, '_file2dict', staticmethod(once))
        patch.setattr(config, 'is_installed', functools.cache(config.is_installed))
        patch.setattr(utils, 'load', functools.cache(utils.load))
        patch.setattr(mmengine.dataset.base_dataset, 'gc', SimpleNamespace(collect=lambda: 0))
        yield


@pytest.fixture(autouse=True, scope='session')
def _files_as_in_the_tools():
    from lckd_mm.storage.files import install

    install()


def _forget_runs():
    """mmengine keeps scopes, loggers, message hubs and visualizers in globals by name: drop them."""
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


@pytest.fixture(autouse=True)
def _no_leaked_managers():
    yield
    _forget_runs()


@pytest.fixture(scope='session')
def forget_runs():
    """``forget_runs()`` between runs of one fixture or test: two visualizers of one name would be the first."""
    return _forget_runs


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
