"""Two-stage detectors, masks and queries on digit scenes: each leaf trains, each row of their study builds."""

import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from run_helpers import ROOT, run
from scenes.digit_scenes import write_digit_scenes

from lckd_mm.config import check_data, is_distillation, student_config
from lckd_mm.hosts import build_model, read_model_config

LEAVES = sorted((ROOT / 'configs/scenes').glob('*.py'))
STUDY = 'tools/bench/studies/scenes_families.py'
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def full_but_few(path):
    """The others run under `make test-all`."""
    quick = path.stem.startswith(('queries', 'regions_mask-rcnn_r18-w32_mask'))
    return pytest.param(path, id=path.stem, marks=[] if quick else pytest.mark.full)


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_digit_scenes(tmp_path_factory.mktemp('data') / 'scenes', train=4, val=2, progress=False)


@pytest.mark.parametrize('path', map(full_but_few, LEAVES))
def test_two_steps_and_a_validation(path, data, tmp_path):
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    for name in LOADERS:
        cfg[name].dataset.data_root = str(data)
    cfg.val_evaluator.ann_file = cfg.test_evaluator.ann_file = str(data / 'coco/val.json')
    cfg.train_dataloader.batch_size = 2
    cfg.train_cfg.update(max_iters=2, val_interval=2)
    cfg.default_hooks.checkpoint.interval, cfg.default_hooks.logger.interval = 2, 1
    if is_distillation(cfg):
        torch.manual_seed(1)
        teacher = build_model(read_model_config(cfg.model.teacher.model, 'teacher')[0], cfg.default_scope)
        torch.save(dict(state_dict=teacher.state_dict()), tmp_path / 'teacher.pth')
        cfg.model.teacher.checkpoint = str(tmp_path / 'teacher.pth')
        cfg.default_hooks.distillation = dict(type='lckd_mm.DistillationHook')
    cfg.work_dir, cfg.log_level = str(tmp_path / 'run'), 'WARNING'
    check_data(cfg, LOADERS)
    runner = run(cfg)
    assert runner.iter == 2
    logged = runner.message_hub.log_scalars
    assert {f'val/coco/{kind}_mAP' for kind in cfg.val_evaluator.metric} <= set(logged)
    for term in cfg.model.get('terms', ()):
        assert 0 < logged[f'train/{term}'].current() < float('inf'), term
    state = torch.load(tmp_path / 'run/iter_2.pth')['state_dict']
    build_model(student_config(cfg).model, cfg.default_scope).load_state_dict(state)


@pytest.mark.parametrize('path', [p for p in LEAVES if p.stem.startswith(('regions', 'queries'))], ids=lambda p: p.stem)
def test_a_distillation_is_its_students_training(path):
    cfg = Config.fromfile(path)
    (alone,) = (Config.fromfile(p) for p in LEAVES if p != path and path.stem.endswith(f'_{p.stem}'))
    assert cfg.model.student == alone.model
    for key in (*LOADERS, 'optim_wrapper', 'param_scheduler', 'train_cfg', 'val_evaluator', 'test_evaluator'):
        assert cfg[key] == alone[key], key
    teacher = Config.fromfile(cfg.model.teacher.model)
    assert cfg.model.teacher.checkpoint.endswith(f'_{teacher.train_cfg.max_iters}.pth')


@pytest.mark.full
@pytest.mark.parametrize('row', Config.fromfile(ROOT / STUDY).runs)
def test_each_row_of_the_study_builds(row, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools/bench'))
    import study
    from measure import build_for_training

    made = study.Study(ROOT / STUDY)
    cfg = Config.fromfile(made.runs[row]['config'])
    cfg.merge_from_dict(made.own_options(study.Cell(row)))
    model = build_for_training(cfg, torch.device('cpu'))
    assert set(cfg.model.get('terms', ())) == made.terms(study.Cell(row))
    student = build_model(student_config(cfg).model, cfg.default_scope)
    assert list(model.state_dict()) == list(student.state_dict())
    sys.modules.pop('study')
