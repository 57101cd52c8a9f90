"""Every config is read, says what it should, and builds; the front door takes a step on files in VOC's own format."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image
from run_helpers import ROOT, run

from lckd_mm.config import check_data, is_distillation, student_config
from lckd_mm.hosts import build_model, read_model_config

CONFIGS = sorted(p for p in (ROOT / 'configs').rglob('*.py') if '_base_' not in p.parts)
# Of these folders a few: test_published_pairs.py and test_real_image_configs.py read every config, and build nets.
LARGE = ('coco', 'cityscapes', 'ade20k', 'bccd', 'nuclei', 'fashion_mnist', 'foundation')
BUILT = ('gfl-r18', 'pkd_rtmdet-l_rtmdet-tiny', 'auto_deeplabv3plus_m-v2', 'dinov2-small_rtmdet')


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def marked(path):
    few = path.parent.name not in LARGE or path.stem.startswith(BUILT)
    return pytest.param(path, id=path.stem, marks=[] if few else pytest.mark.full)


@pytest.mark.parametrize('path', map(marked, CONFIGS))
def test_builds(path):
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    if cfg.get('data_preprocessor') is not None:
        cfg.model.data_preprocessor = cfg.data_preprocessor  # as the Runner does
    if is_distillation(cfg):
        # Where a config says no size, a small one: nothing but the cost depends on it.
        cfg.model.setdefault('dry_run_size', 32 if 'cifar100' in path.stem else 64)
    model = MODELS.build(cfg.model)
    assert sum(p.numel() for p in model.parameters()) > 1e4
    if is_distillation(cfg):
        # by name and by architecture the student is its own baseline
        student = build_model(student_config(cfg).model, cfg.default_scope)
        assert list(model.state_dict()) == list(student.state_dict())


def test_a_distillation_config_differs_from_its_baseline_by_the_distillation_only():
    for lckd, alone in (
        ('lckd_fcn_voc.py', 'segmentation/fcn_r18-d8_4xb4-20k_voc12aug-512x512.py'),
        ('demo/lckd_fcn_r18-w32_fcn_r18-w8_1xb8-digit-scenes-96x96.py', 'demo/fcn_r18-w8_1xb8-digit-scenes-96x96.py'),
    ):
        distilled, plain = Config.fromfile(ROOT / 'configs' / lckd), Config.fromfile(ROOT / 'configs' / alone)
        assert distilled.model.student == plain.model
        shared = (
            'train_dataloader',
            'val_dataloader',
            'optim_wrapper',
            'param_scheduler',
            'train_cfg',
            'val_evaluator',
        )
        for key in shared:
            assert distilled[key] == plain[key], key


def voc_tree(root: Path) -> Path:
    """Six images in the layout of VOC2012 + SBD as mmsegmentation reads them."""
    rng = np.random.default_rng(0)
    for folder in ('JPEGImages', 'SegmentationClass', 'SegmentationClassAug', 'ImageSets/Segmentation'):
        (root / folder).mkdir(parents=True)
    splits = {'train': ['2007_000032', '2007_000039'], 'aug': ['2008_000008', '2008_000015'], 'val': ['2007_000033']}
    for split, names in splits.items():
        (root / f'ImageSets/Segmentation/{split}.txt').write_text('\n'.join(names) + '\n')
        for name in names:
            cv2.imwrite(str(root / f'JPEGImages/{name}.jpg'), rng.integers(0, 255, (60, 80, 3), np.uint8))
            mask = Image.fromarray(rng.integers(0, 21, (60, 80)).astype(np.uint8), 'P')
            mask.putpalette(list(range(256)) * 3)
            mask.save(root / ('SegmentationClassAug' if split == 'aug' else 'SegmentationClass') / f'{name}.png')
    return root


def test_front_door_trains_on_files_in_the_vocs_format(tmp_path):
    """configs/lckd_fcn_voc.py as it is, but for the images' size, the nets' widths, and a teacher from a local file."""
    cfg = Config.fromfile('configs/lckd_fcn_voc.py')
    root = voc_tree(tmp_path / 'VOC2012')
    narrow = {'backbone.base_channels': 4, 'backbone.stem_channels': 8, 'pretrained': None}
    teacher = Config.fromfile('configs/lckd_fcn_voc.py').model.teacher.model
    teacher = Config(dict(model=read_model_config(teacher, 'teacher')[0]))
    teacher.merge_from_dict({f'model.{k}': v for k, v in narrow.items()})
    teacher.merge_from_dict({'model.decode_head.in_channels': 128, 'model.auxiliary_head.in_channels': 64})
    torch.save(dict(state_dict=build_model(teacher.model, 'mmseg').state_dict()), tmp_path / 'teacher.pth')
    cfg.merge_from_dict({f'model.student.{k}': v for k, v in narrow.items()})
    cfg.merge_from_dict({'model.student.decode_head.in_channels': 32, 'model.student.auxiliary_head.in_channels': 16})
    cfg.model.teacher = dict(model=teacher.model.to_dict(), checkpoint=str(tmp_path / 'teacher.pth'))
    cfg.model.student.data_preprocessor.size = (64, 64)
    datasets = [*cfg.train_dataloader.dataset.datasets, cfg.val_dataloader.dataset]
    for dataset in datasets:
        dataset.data_root = str(root)
        for step in dataset.pipeline:
            if step.type in ('RandomCrop', 'Pad'):
                step['crop_size' if step.type == 'RandomCrop' else 'size'] = (64, 64)
            elif 'scale' in step:
                step.scale = (128, 64)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    cfg.train_dataloader.batch_size = 2
    cfg.train_cfg.update(max_iters=2, val_interval=2)
    cfg.default_hooks.checkpoint.interval = 2
    cfg.default_hooks.logger.interval = 1
    cfg.work_dir = str(tmp_path / 'run')
    check_data(cfg, ('train_dataloader', 'val_dataloader'))
    runner = run(cfg)
    assert runner.iter == 2
    saved = torch.load(tmp_path / 'run' / 'iter_2.pth')
    plain = build_model(student_config(cfg).model, 'mmseg')
    plain.load_state_dict(saved['state_dict'], strict=True)
    logged = runner.message_hub.log_scalars
    assert logged['train/loss_lipschitz'].current() > 0 and logged['train/loss_ofd'].current() > 0
    assert 'train/sigma_teacher/stage3-stage4' in logged


@pytest.mark.parametrize('path', sorted((ROOT / 'configs').rglob('metafile.yml')), ids=lambda p: p.parent.name)
def test_a_metafile_lists_each_config_of_its_folder(path):
    index = yaml.safe_load(path.read_text())
    listed = [model['Config'] for model in index['Models']]
    assert sorted(listed) == sorted(str(p.relative_to(ROOT)) for p in path.parent.glob('*.py'))
    assert [model['Name'] for model in index['Models']] == [Path(p).stem for p in listed]
    collections = {c['Name']: c for c in index['Collections']}
    assert {model['In Collection'] for model in index['Models']} == set(collections)
    assert {ROOT / c['README'] for c in collections.values()} == {path.with_name('README.md')}
    assert path.with_name('README.md').is_file()
