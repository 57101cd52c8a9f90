"""The ImageNet configs on files in ImageNet's own folders."""

import math

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image
from run_helpers import ROOT, run, scalars

from lckd_mm.hosts import build_model

CONFIGS = ROOT / 'configs' / 'imagenet'
PAIRS = ('resnet152_resnet50', 'resnet50_mobilenetv1')


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope='module')
def imagenet(tmp_path_factory):
    """train and val, a folder a class, JPEG files of several sizes; one of them grey, as some of ImageNet's are."""
    root, rng = tmp_path_factory.mktemp('imagenet'), np.random.default_rng(0)
    for split in ('train', 'val'):
        for label in range(1000):
            folder = root / split / f'n{1440764 + label:08d}'
            folder.mkdir(parents=True)
            for i in range(2 if (split, label) == ('train', 0) else 1):
                pixels = rng.integers(256, size=(60 + 20 * i, 80, 3), dtype=np.uint8)
                Image.fromarray(pixels if i == 0 else pixels[..., 0]).save(folder / f'{folder.name}_{i}.JPEG')
    return root


def narrowed(model):
    if model.backbone.type == 'ResNet':
        model.backbone.update(depth=50, base_channels=8, stem_channels=8)
        model.head.in_channels = 256
    else:
        model.backbone.width_multiplier = 0.25
        model.head.in_channels = 256


@pytest.mark.parametrize('split', ['train', 'val'])
def test_folders_are_read_with_their_classes(imagenet, split):
    cfg = Config.fromfile(CONFIGS / 'resnet50_8xb32_in1k.py')
    init_default_scope('mmpretrain')
    dataset_cfg = cfg[f'{split}_dataloader'].dataset
    dataset_cfg.data_root = str(imagenet)
    dataset = DATASETS.build(dataset_cfg)
    labels = dataset.get_gt_labels().tolist()
    assert labels == ([0] if split == 'train' else []) + list(range(1000))
    assert dataset[0]['inputs'].shape == (3, 224, 224)


@pytest.mark.parametrize('pair', PAIRS)
def test_two_steps_on_those_folders(pair, imagenet, tmp_path):
    cfg = Config.fromfile(CONFIGS / f'lckd-kd_{pair}_8xb32_in1k.py')
    teacher = cfg.model.teacher
    assert teacher.checkpoint == 'torchvision://' + pair.partition('_')[0]
    for model in (cfg.model.student, teacher.model):
        narrowed(model)
    init_default_scope('mmpretrain')
    torch.save(dict(state_dict=build_model(teacher.model, 'mmpretrain').state_dict()), tmp_path / 'teacher.pth')
    teacher.checkpoint = str(tmp_path / 'teacher.pth')
    cfg.train_dataloader.update(batch_size=2, num_workers=0, persistent_workers=False)
    cfg.train_dataloader.dataset.update(data_root=str(imagenet), indices=4)
    for key in ('val_dataloader', 'val_cfg', 'val_evaluator', 'test_dataloader', 'test_cfg', 'test_evaluator'):
        cfg.pop(key)
    cfg.train_cfg = dict(by_epoch=True, max_epochs=1)
    cfg.work_dir, cfg.log_level = str(tmp_path / 'run'), 'WARNING'
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.distillation = dict(type='lckd_mm.DistillationHook')
    run(cfg)
    entries = [e for e in scalars(tmp_path / 'run') if 'loss_ofd' in e]
    assert len(entries) == 2
    for name in ('loss_task', 'loss_ofd', 'loss_lipschitz', 'loss_kd'):
        assert all(math.isfinite(e[name]) and e[name] > 0 for e in entries), name


def test_the_recipe_is_the_papers():
    for pair in PAIRS:
        cfg = Config.fromfile(CONFIGS / f'lckd_{pair}_8xb32_in1k.py')
        optimizer = cfg.optim_wrapper.optimizer
        assert (optimizer.lr, optimizer.momentum, optimizer.weight_decay, optimizer.nesterov) == (0.1, 0.9, 1e-4, True)
        assert (cfg.param_scheduler.milestones, cfg.param_scheduler.gamma) == ([30, 60, 90], 0.1)
        assert cfg.train_cfg.max_epochs == 100
        assert cfg.model.teacher.bn == 'batch'
        assert cfg.model.terms.loss_ofd.weight == 1e-4
        assert cfg.model.terms.loss_lipschitz.weight == pytest.approx(2000 / (10000 * 96))
        assert cfg.model.student == Config.fromfile(CONFIGS / f'{pair.partition("_")[2]}_8xb32_in1k.py').model
