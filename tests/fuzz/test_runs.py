"""Malformed hooks, schedules, backbones and data sets, by the real Runner and registries."""

import copy
import functools

import mmengine.runner.runner
import pytest
import sklearn.datasets
import torch
from fuzz_helpers import (
    CONV,
    SIDE,
    VALUES,
    apply,
    classifier,
    config,
    forget,
    fuzz,
    mutations,
    names_in,
    paths_of,
)
from hypothesis import strategies as st
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner
from mmengine.utils.dl_utils import collect_env
from sklearn.datasets import load_digits

from lckd_mm.hosts import build_model

pytestmark = pytest.mark.timeout(900)

TERMS = dict(
    loss_kd=dict(loss=dict(type='lckd_mm.KDLoss'), on='logits', weight=0.5),
    loss_lipschitz=dict(loss=dict(type='lckd_mm.LipschitzLoss'), on=['low', 'high'], connector=CONV),
)
HOOKS = [
    dict(type='lckd_mm.LossWeightHook', term='loss_kd', schedule='constant', by='iter', factor=0.5),
    dict(type='lckd_mm.LossWeightHook', term='loss_kd', schedule='step', by='epoch', milestones=[1, 2], gamma=0.1),
    dict(type='lckd_mm.LossWeightHook', term='loss_kd', schedule='step', by='iter', milestones=[0.25, 0.5], gamma=0.1),
    dict(
        type='lckd_mm.LossWeightHook', term='loss_kd', schedule='linear', by='iter', begin=0, end=1, start=0.0, stop=1.0
    ),
    dict(type='lckd_mm.LossWeightHook', term='loss_kd', schedule='cosine', by='epoch', begin=0.25, end=0.5, start=1.0,
         stop=0.0),
    dict(type='lckd_mm.LossWeightHook', term='loss_lipschitz', schedule='stop', by='iter', end=1),
    dict(type='lckd_mm.ConnectorWarmupHook', end=1, by='iter'),
    dict(type='lckd_mm.LipschitzMonitorHook', on=['low', 'high'], term='loss_lipschitz', interval=1, gap='log'),
    dict(type='lckd_mm.TeacherCheckHook', at_least={'accuracy/top1': 0.0}),
    dict(type='lckd_mm.PredictionHook', indices=[0, 1], interval=1),
    dict(type='lckd_mm.DistillationHook'),
]  # fmt: skip


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp('teacher') / 'mmpretrain.pth'
    model = classifier(4)
    model['head'].update(num_classes=10)
    torch.manual_seed(0)
    torch.save(build_model(model, 'mmpretrain').state_dict(), path)
    return path


def nameless(case):
    """An empty type: looking it up is mmengine's affair, where nothing of ours is built yet."""
    return case[0][0][-1] == 'type' and case[0][2] == ''


def loader(split, **sampler):
    digits = dict(type='lckd_mm.Digits', split=split, size=SIDE, subset=8, pipeline=[dict(type='PackInputs')])
    digits['serialize_data'] = False  # which collects all of Python's garbage
    return dict(batch_size=4, num_workers=0, dataset=digits, sampler=dict(type='DefaultSampler', **sampler))


def train(hook, checkpoint, work_dir):
    """Two iterations and a validation; the student is finite afterwards."""
    forget()
    arguments = config('mmpretrain', checkpoint, copy.deepcopy(TERMS))
    for net in (arguments['student'], arguments['teacher']['model']):
        net['head'].update(num_classes=10)
        net['data_preprocessor'].update(num_classes=10)
    cfg = dict(
        default_scope='mmpretrain',
        model=dict(type='lckd_mm.Distiller', **arguments),
        work_dir=str(work_dir),
        train_dataloader=loader('train', shuffle=True),
        val_dataloader=loader('test', shuffle=False),
        val_evaluator=dict(type='Accuracy'),
        val_cfg={},
        train_cfg=dict(by_epoch=False, max_iters=2, val_interval=2),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-3)),
        default_hooks=dict(distillation=dict(type='lckd_mm.DistillationHook'), checkpoint=None),
        log_level='CRITICAL',
        randomness=dict(seed=0),
        custom_hooks=[hook],
    )
    runner = Runner(**cfg)
    runner.train()
    for name, parameter in runner.model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ArithmeticError(f'{name} is not finite')


def test_hooks(checkpoint, tmp_path, monkeypatch):
    # What does not change between runs is asked once: compilers and drivers, and scikit-learn's file.
    monkeypatch.setattr(mmengine.runner.runner, 'collect_env', functools.cache(collect_env))
    monkeypatch.setattr(sklearn.datasets, 'load_digits', functools.cache(load_digits))
    for hook in HOOKS:
        train(hook, checkpoint, tmp_path)
    paths = [p for p in paths_of(HOOKS) if len(p) > 1]
    values = (
        *VALUES,
        'loss_lipschitz',
        'linear',
        'stop',
        'epoch',
        'low',
        ['low'],
        ['low', 'logits'],
        [0.5, 0.25],
        3,
        99,
    )

    def run(case):
        hooks = apply(HOOKS, case)
        return None if hooks is None or nameless(case) else lambda: train(hooks[case[0][0][0]], checkpoint, tmp_path)

    def names(case):
        number, key = case[0][0][0], case[0][0][-1]
        term = HOOKS[number].get('term')
        # Times are compared with one another, and with the training's length in the unit that is asked for.
        times = ['begin', 'end'] if key in ('begin', 'end', 'by') else []
        return [*names_in(HOOKS, case), *times, *([repr(term)] if key != 'term' and term else [])]

    fuzz('hooks', mutations(HOOKS, paths, values), run, names)


BACKBONES = [
    dict(type='lckd_mm.WideResNet', depth=10, widen_factor=1, drop_rate=0.1, init_cfg=None),
    dict(type='lckd_mm.PyramidNet', depth=8, alpha=6, bottleneck=False, init_cfg=None),
    dict(type='lckd_mm.PyramidNet', depth=11, alpha=6.5, bottleneck=True, init_cfg=None),
    dict(type='lckd_mm.CifarResNet', depth=8, shortcut='A', init_cfg=None),
    dict(type='lckd_mm.MobileNetV1', stem='cifar', width_multiplier=0.25, out_indices=[5, 11, 13], init_cfg=None),
]


def test_backbones():
    def build(backbone):
        net = MODELS.build(backbone)
        outputs = net(torch.randn(2, 3, 32, 32))
        sum(y.square().mean() for y in outputs).backward()
        assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)

    for backbone in BACKBONES:
        build(backbone)
    paths = [p for p in paths_of(BACKBONES, skip=('init_cfg',)) if len(p) > 1]
    values = (*VALUES, 16, 20, 11, 10**9 + 3, 'B', 'imagenet', [13, 5], [5, 5], [0], [14], 0.01, -3)

    def run(case):
        configs = apply(BACKBONES, case)
        return None if configs is None or nameless(case) else lambda: build(configs[case[0][0][0]])

    fuzz('backbones', mutations(BACKBONES, paths, values), run, lambda case: names_in(BACKBONES, case))


DIGITS = [
    dict(type='lckd_mm.Digits', split='train', size=8, subset=4, label_noise=0.5, subset_seed=1, serialize_data=False)
]


def test_data_sets(monkeypatch):
    monkeypatch.setattr(sklearn.datasets, 'load_digits', functools.cache(load_digits))

    def build(dataset):
        built = DATASETS.build(dataset)
        assert len(built) > 0
        built[0]

    build(DIGITS[0])
    paths = [p for p in paths_of(DIGITS, skip=('serialize_data',)) if len(p) > 1]
    values = (*VALUES, 'test', 'val', 'Train', 898, 899, 900, 0.75, 1.25, 10**6, 5000)

    def run(case):
        configs = apply(DIGITS, case)
        return None if configs is None or nameless(case) else lambda: build(configs[0])

    fuzz('data sets', mutations(DIGITS, paths, values), run, lambda case: names_in(DIGITS, case))
