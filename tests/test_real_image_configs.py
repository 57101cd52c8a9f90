"""BCCD, nuclei and Fashion-MNIST: each leaf trains on files laid out as published; each row of their studies builds."""

import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from real_images import CELLS, NUCLEI, write_real_images
from run_helpers import ROOT, run

from lckd_mm.config import check_data, is_distillation, student_config
from lckd_mm.hosts import build_model, read_model_config

FOLDERS = {'bccd': 'pascal_voc/mAP', 'nuclei': 'mIoU', 'fashion_mnist': 'accuracy/top1'}
LEAVES = sorted(p for folder in FOLDERS for p in (ROOT / 'configs' / folder).glob('*.py'))
#: The others run under `make test-all`.
QUICK = ('ofd_wrn16-2',)
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
ALONE = ('retinanet_r18-w8', 'deeplabv3plus_r18-w8', 'wrn10-1')


def full_but_few(path):
    return pytest.param(path, id=path.stem, marks=[] if path.stem.startswith(QUICK) else pytest.mark.full)


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        root = write_real_images(tmp_path_factory.mktemp('data') / 'root', patch)
    return root


@pytest.fixture(scope='module')
def imagenet(tmp_path_factory):
    """A file such as torchvision's of MobileNetV2."""
    from torchvision.models import mobilenet_v2

    torch.manual_seed(0)
    file = tmp_path_factory.mktemp('weights') / 'mobilenet_v2.pth'
    torch.save(mobilenet_v2().state_dict(), file)
    return str(file)


def on(cfg, root, folder):
    for name in LOADERS:
        loader = cfg[name]
        loader.dataset.data_root = str(root / folder)
        if 'indices' in loader.dataset:
            loader.dataset.indices = 4 if loader.dataset.indices > 0 else -4
    cfg.train_dataloader.batch_size = 2
    if folder == 'fashion_mnist':
        cfg.train_cfg.update(max_epochs=1, val_interval=1)
        cfg.default_hooks.checkpoint.interval = 1
    else:
        cfg.train_cfg.update(max_iters=2, val_interval=2)
        cfg.default_hooks.checkpoint.interval = 2
    cfg.default_hooks.logger.interval = 1


@pytest.mark.parametrize('path', map(full_but_few, LEAVES))
def test_two_steps_and_a_validation(path, data, request, tmp_path):
    folder, cfg = path.parent.name, Config.fromfile(path)
    on(cfg, data, folder)
    init_default_scope(cfg.default_scope)
    backbone = (cfg.model.student if is_distillation(cfg) else cfg.model).backbone
    if (backbone.get('init_cfg') or {}).get('type') == 'lckd_mm.TorchvisionInit':
        backbone.init_cfg.checkpoint = request.getfixturevalue('imagenet')
    if is_distillation(cfg):
        teacher = build_model(read_model_config(cfg.model.teacher.model, 'teacher')[0], cfg.default_scope)
        torch.save(dict(state_dict=teacher.state_dict()), tmp_path / 'teacher.pth')
        cfg.model.teacher.checkpoint = str(tmp_path / 'teacher.pth')
        cfg.default_hooks.distillation = dict(type='lckd_mm.DistillationHook')
    cfg.work_dir, cfg.log_level = str(tmp_path / 'run'), 'WARNING'
    check_data(cfg, LOADERS)
    runner = run(cfg)
    assert runner.iter == 2
    logged = runner.message_hub.log_scalars
    assert f'val/{FOLDERS[folder]}' in logged
    for term in cfg.model.get('terms', ()):
        assert 0 < logged[f'train/{term}'].current() < float('inf'), term
    (file,) = (tmp_path / 'run').glob('*_[12].pth')
    build_model(student_config(cfg).model, cfg.default_scope).load_state_dict(torch.load(file)['state_dict'])
    if folder == 'bccd':
        assert {f'val/pascal_voc/AP{t}_{c}' for t in (50, 70) for c in ('RBC', 'WBC', 'Platelets')} <= set(logged)


@pytest.mark.parametrize('folder', FOLDERS)
def test_a_config_trains_on_train_validates_on_val_and_tests_on_test(folder, data):
    alone = next(p for p in LEAVES if p.parent.name == folder and p.stem.startswith(ALONE))
    cfg = Config.fromfile(alone)
    on(cfg, data, folder)
    init_default_scope(cfg.default_scope)
    sets = [DATASETS.build(cfg[name].dataset) for name in LOADERS]
    if folder == 'fashion_mnist':
        first, last, test = ([int(s.get_data_info(i)['gt_label']) for i in range(len(s))] for s in sets)
        labels = [list((data / folder / f'{s}-labels-idx1-ubyte').read_bytes()[8:]) for s in ('train', 't10k')]
        assert (first, last, test) == (labels[0][:4], labels[0][-4:], labels[1])
        assert Config.fromfile(alone).train_dataloader.dataset.indices == 6000
        assert Config.fromfile(alone).val_dataloader.dataset.indices == -5000
        return
    names = [{s.get_data_info(i)['img_path'].rpartition('/')[2][:-4] for i in range(len(s))} for s in sets]
    expected = CELLS if folder == 'bccd' else {}
    assert names == [set(expected.get(s) or [n for n in NUCLEI if NUCLEI[n] == s]) for s in ('train', 'val', 'test')]


@pytest.mark.parametrize(
    'path', [p for p in LEAVES if p.stem.startswith(('kd_', 'ofd_', 'auto_'))], ids=lambda p: p.stem
)
def test_a_distillation_is_its_students_training(path):
    cfg = Config.fromfile(path)
    (alone,) = (Config.fromfile(p) for p in LEAVES if p != path and path.stem.endswith(f'_{p.stem}'))
    assert cfg.model.student == alone.model
    for key in (*LOADERS, 'optim_wrapper', 'param_scheduler', 'train_cfg', 'val_evaluator', 'test_evaluator'):
        assert cfg[key] == alone[key], key
    teacher = Config.fromfile(cfg.model.teacher.model)
    length = teacher.train_cfg.get('max_iters') or teacher.train_cfg.max_epochs
    assert cfg.model.teacher.checkpoint.endswith(f'_{length}.pth')


def rows():
    for name in FOLDERS:
        for run_name in Config.fromfile(ROOT / f'tools/bench/studies/{name}.py').runs:
            yield pytest.param(name, run_name, id=f'{name}-{run_name}', marks=pytest.mark.full)


@pytest.mark.parametrize(('name', 'row'), rows())
def test_each_row_of_a_study_builds(name, row, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools/bench'))
    import study
    from measure import build_for_training

    made = study.Study(ROOT / f'tools/bench/studies/{name}.py')
    cfg = Config.fromfile(made.runs[row]['config'])
    cfg.merge_from_dict(made.own_options(study.Cell(row)))
    model = build_for_training(cfg, torch.device('cpu'))
    assert set(cfg.model.get('terms', ())) == made.terms(study.Cell(row))
    student = build_model(student_config(cfg).model, cfg.default_scope)
    assert list(model.state_dict()) == list(student.state_dict())
    sys.modules.pop('study')
