"""Every distillation config of configs/segmentation takes real steps on files in the VOC's own layout, narrowed."""

import math
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from run_helpers import ROOT, count, run, scalars
from test_configs import voc_tree

from lckd_mm.config import check_data, student_config
from lckd_mm.functional import bn_margin, partial_l2
from lckd_mm.hosts import build_model, read_model_config

# With all terms that a pair has: those of the other configs are among them.
CONFIGS = (ROOT / 'configs/segmentation').glob('*.py')
DISTILLATIONS = sorted(path for path in CONFIGS if path.stem.startswith(('cwd_', 'lckd-kd_')))
OFD = 'ofd_deeplabv3plus_r101-d16_deeplabv3plus_r18-d16_1xb12-44k_voc12aug-513x513'
SIZE = 65


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def narrow(model):
    """A sixteenth of the width; depth, strides and head stay."""
    model.pretrained = None
    model.data_preprocessor.size = (SIZE, SIZE)
    head, backbone = model.decode_head, model.backbone
    if backbone.type == 'MobileNetV2':
        backbone.widen_factor = 0.25
        head.update(in_channels=80, c1_in_channels=8)
    else:
        backbone.update(base_channels=4, stem_channels=8)
        expansion = 4 if backbone.depth > 34 else 1
        head.in_channels = 32 * expansion
        if 'c1_in_channels' in head:
            head.c1_in_channels = 4 * expansion
        if model.get('auxiliary_head'):
            model.auxiliary_head.update(in_channels=16 * expansion, channels=8)
    head.channels = 16
    return model


def narrowed(path: Path, folder: Path, iters: int) -> Config:
    cfg = Config.fromfile(path)
    narrow(cfg.model.student)
    teacher = narrow(Config(dict(model=read_model_config(cfg.model.teacher.model, 'teacher')[0])).model)
    torch.manual_seed(1)
    torch.save(dict(state_dict=build_model(teacher, 'mmseg').state_dict()), folder / 'teacher.pth')
    cfg.model.teacher.update(model=teacher.to_dict(), checkpoint=str(folder / 'teacher.pth'))
    root = voc_tree(folder / 'VOC2012')
    for dataset in [*cfg.train_dataloader.dataset.datasets, cfg.val_dataloader.dataset]:
        dataset.data_root = str(root)
        for step in dataset.pipeline:
            if step.type in ('RandomCrop', 'Pad'):
                step['crop_size' if step.type == 'RandomCrop' else 'size'] = (SIZE, SIZE)
            elif 'scale' in step:
                step.scale = (2 * SIZE, SIZE)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    cfg.train_dataloader.batch_size = 2
    cfg.train_cfg.update(max_iters=iters, val_interval=iters)
    cfg.default_hooks.checkpoint.interval = iters
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.distillation = dict(type='lckd_mm.DistillationHook')
    cfg.log_level = 'WARNING'
    cfg.randomness = dict(seed=0)
    cfg.work_dir = str(folder / 'run')
    check_data(cfg, ('train_dataloader', 'val_dataloader'))
    return cfg


@pytest.mark.parametrize('path', count(DISTILLATIONS, DISTILLATIONS[::3]), ids=lambda path: path.stem)
def test_it_trains_and_validates_on_files_in_the_vocs_layout(path, tmp_path):
    iters = 3 if 'deeplab' in path.stem else 2  # of four images: the warm-up's epoch is two
    cfg = narrowed(path, tmp_path, iters)
    runner = run(cfg)
    entries = scalars(tmp_path / 'run')
    assert 'mIoU' in entries[-1]
    assert len(runner.model.terms) == (1 if path.stem.startswith('cwd') else 3)
    for name in runner.model.terms:
        values = [entry[name] for entry in entries if name in entry]
        assert len(values) == iters
        assert all(math.isfinite(value) and value > 0 for value in values), name
    plain = build_model(student_config(cfg).model, 'mmseg')
    plain.load_state_dict(
        torch.load(tmp_path / 'run' / f'iter_{iters}.pth', weights_only=False)['state_dict'], strict=True
    )


def test_ofds_recipe(tmp_path):
    """Six layers by the published sum; the connectors alone at first; ten times the learning rate for what is new."""
    path = ROOT / f'configs/segmentation/{OFD}.py'
    cfg = narrowed(path, tmp_path, iters=4)
    seen = []

    class Watch:
        def __init__(self, model):
            self.model = model

        def __call__(self, student, teacher, connected, losses):
            norms = {f'stage{i}': f'backbone.layer{i}.2.bn3' for i in (1, 4)}
            norms |= {'stage2': 'backbone.layer2.3.bn3', 'stage3': 'backbone.layer3.22.bn3'}
            norms |= {'aspp': 'decode_head.bottleneck.bn', 'decoder': 'decode_head.sep_bottleneck.1.pointwise_conv.bn'}
            total, divisors = 0.0, dict(stage1=8, stage2=4, stage3=2, stage4=1, aspp=1, decoder=16)
            for tap, divisor in divisors.items():
                norm = self.model.teacher.model.get_submodule(norms[tap])
                margin = bn_margin(norm.weight, norm.bias).view(1, -1, 1, 1)
                distance = partial_l2(connected['loss_ofd'][tap], torch.maximum(teacher[tap], margin))
                total = total + distance.sum() / len(distance) / divisor
            weights = {key: p.detach().clone() for key, p in self.model.named_parameters()}
            seen.append((1e-5 * total.item(), losses['loss_ofd'].item(), weights))

    class Register:
        def before_train(self, runner):
            runner.model.observers.append(Watch(runner.model))

    from mmengine.hooks import Hook

    runner = run(cfg, type('RegisterHook', (Register, Hook), {})())
    for expected, value, _ in seen:
        assert value == pytest.approx(expected, rel=1e-4)
    first, second, third, last = (weights for _, _, weights in seen)
    for name in first:
        moved = [not torch.equal(a[name], b[name]) for a, b in ((first, second), (third, last))]
        if name.startswith('terms.'):
            assert moved == [True, True], name
        elif name.endswith('conv1.weight'):
            assert moved == [False, True], name
    rates = {}
    for group in runner.optim_wrapper.optimizer.param_groups:
        for parameter in group['params']:
            rates[parameter] = group['initial_lr']
    for name, parameter in runner.model.named_parameters():
        assert rates[parameter] == pytest.approx(0.007 if name.startswith('backbone.') else 0.07), name
    assert runner.model.teacher.bn == 'batch'
