"""The main job in miniature, by the tools a user calls: teacher, student, distilled student, plain host."""

import json
import os
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from run_helpers import FULL, ROOT, count
from scenes.digit_scenes import write_digit_scenes

from lckd_mm import cli
from lckd_mm.functional import lipschitz_gap, transmitting_norm
from lckd_mm.hosts import build_model
from lckd_mm.storage.checkpoint import load_strictly
from lckd_mm.taps import FeatureTaps

ALONE = 'configs/demo/fcn_r18-w8_1xb8-digit-scenes-96x96.py'
TEACHER = 'configs/demo/fcn_r18-w32_1xb8-digit-scenes-96x96.py'
LCKD = 'configs/demo/lckd_fcn_r18-w32_fcn_r18-w8_1xb8-digit-scenes-96x96.py'
RAW = 'configs/demo/kd-rawlip_fcn_r18-w32_fcn_r18-w8_1xb8-digit-scenes-96x96.py'
ITERS = count(full=60, reduced=8)
DETECTOR = 'configs/demo/retinanet_r18-w8_1xb8-digit-scenes-96x96.py'
DETECTOR_TEACHER = 'configs/demo/retinanet_r18-w32_1xb8-digit-scenes-96x96.py'
DETECTOR_LCKD = 'configs/demo/lckd_retinanet_r18-w32_retinanet_r18-w8_1xb8-digit-scenes-96x96.py'

PLAIN_TEST = """
import sys, json
from mmengine.config import Config
from mmengine.runner import Runner
cfg = Config.fromfile(sys.argv[1])
cfg.load_from, cfg.work_dir = sys.argv[2], sys.argv[3]
metrics = Runner.from_cfg(cfg).test()
assert not any(name.startswith('lckd_mm') for name in sys.modules)
print('METRICS', json.dumps({k: float(v) for k, v in metrics.items()}))
"""


def call(*command, **env):
    command = [sys.executable, '-W', 'ignore', *map(str, command)]
    out = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **env})
    assert out.returncode == 0, out.stderr[-2000:]
    return out.stdout


@pytest.fixture(scope='module')
def tool(forget_runs):
    """``tool(main, *argv)``: a tool's function in this process."""

    def call(main, *argv):
        forget_runs()
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(ROOT)
            assert cli.run_tool(main, list(map(str, argv))) == 0

    return call


@pytest.fixture(scope='module')
def runs(tool, tmp_path_factory):
    """The folders of four short trainings, and the options that they share. `make test` needs two, of a few steps."""
    root = tmp_path_factory.mktemp('end_to_end')
    data = write_digit_scenes(root / 'scenes', train=count(full=64, reduced=16), val=8, progress=False)
    shared = [
        f'train_dataloader.dataset.data_root={data}',
        f'val_dataloader.dataset.data_root={data}',
        f'test_dataloader.dataset.data_root={data}',
        f'train_cfg.max_iters={ITERS}',
        f'train_cfg.val_interval={ITERS}',
        f'param_scheduler.0.total_steps={ITERS}',
        f'default_hooks.checkpoint.interval={ITERS}',
        'default_hooks.logger.interval=1',
    ]
    narrow = {
        'model.backbone.base_channels': 16,
        'model.decode_head.in_channels': 128,
        'model.auxiliary_head.in_channels': 64,
    }
    distil = [
        f'model.teacher.checkpoint={root}/teacher/iter_{ITERS}.pth',
        f'model.teacher.model={root}/teacher.py',
        'default_hooks.lipschitz.interval=1',
    ]
    teacher = Config.fromfile(ROOT / TEACHER)
    teacher.merge_from_dict(narrow)
    teacher.dump(root / 'teacher.py')
    for name, config, options in (
        ('teacher', root / 'teacher.py', []),
        ('off', RAW, [*distil, 'model.terms.loss_lipschitz.weight=0']),
        ('on', RAW, [*distil, 'model.terms.loss_lipschitz.weight=5']),
        ('london', LCKD, distil),
    ):
        if FULL or name in ('teacher', 'london'):
            tool(cli.train, config, '--work-dir', root / name, '--cfg-options', *shared, *options)
    return root, shared


def history(folder):
    (file,) = folder.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.full
def test_losses_fall(runs):
    root, _ = runs
    for name in ('teacher', 'off', 'on', 'london'):
        losses = [e['loss'] for e in history(root / name) if 'loss' in e]
        assert len(losses) == ITERS
        # logged values are means over 10 iterations
        assert losses[-1] < 0.5 * losses[9]


def validation_gap(root, name):
    """Mean |ln sigma_S - ln sigma_T| over layers and validation images, raw taps, from the files on disk."""
    init_default_scope('mmseg')
    sigmas = []
    for config, checkpoint in (
        (ROOT / ALONE, root / name / f'iter_{ITERS}.pth'),
        (root / 'teacher.py', root / 'teacher' / f'iter_{ITERS}.pth'),
    ):
        cfg = Config.fromfile(config)
        cfg.val_dataloader.dataset.data_root = str(root / 'scenes')
        model = build_model(cfg.model, 'mmseg').eval()
        load_strictly(model, str(checkpoint), 'test')
        (batch,) = Runner.build_dataloader(cfg.val_dataloader)
        data = model.data_preprocessor(batch, False)
        taps = FeatureTaps({f's{i}': f'backbone.layer{i}@preact' for i in range(1, 5)})
        with torch.no_grad():
            taps.trace(model, lambda: model(**data, mode='tensor'))  # noqa: B023
            with taps.record(model) as f:
                model(**data, mode='tensor')
            sigmas.append(torch.stack([transmitting_norm(a, b) for a, b in pairwise(f.values())]))
    return lipschitz_gap(*sigmas, 'log').sqrt().mean().item()


@pytest.mark.full
def test_raw_matching_closes_the_gap_of_the_raw_taps(runs):
    root, _ = runs
    off, on = validation_gap(root, 'off'), validation_gap(root, 'on')
    assert on < 0.5 * off, (on, off)


def by_both_tests(tool, folder, lckd, plain, checkpoint, options):
    """The metrics by our tools/test.py, and by a process that never imports this package."""
    tool(cli.test, lckd, checkpoint, '--work-dir', folder / 'ours', '--out', folder / 'ours.json',
         '--cfg-options', *options)  # fmt: skip
    plain.dump(folder / 'plain.py')
    out = call('-c', PLAIN_TEST, folder / 'plain.py', checkpoint, folder / 'plain',
               TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD='1')  # fmt: skip
    theirs = json.loads(next(line for line in out.splitlines() if line.startswith('METRICS')).split(' ', 1)[1])
    return json.loads((folder / 'ours.json').read_text()), theirs


def test_distilled_student_gives_the_same_miou_in_plain_mmseg(runs, tool, tmp_path):
    root, shared = runs
    plain = Config.fromfile(ROOT / ALONE)
    plain.test_dataloader.dataset.data_root = str(root / 'scenes')
    checkpoint = root / 'london' / f'iter_{ITERS}.pth'
    ours, theirs = by_both_tests(tool, tmp_path, LCKD, plain, checkpoint, shared)
    assert ours == theirs
    validated = [e for e in history(root / 'london') if 'mIoU' in e][-1]['mIoU']
    assert theirs['mIoU'] == pytest.approx(validated)


@pytest.mark.full
def test_distilled_detector_gives_the_same_map_in_plain_mmdet(tool, tmp_path):
    data = write_digit_scenes(tmp_path / 'scenes', train=16, val=2, progress=False)
    # Validated on what it is trained on, so that there is something to be found after so few iterations.
    seen = [f'{split}_dataloader.dataset.ann_file=ImageSets/Main/train.txt' for split in ('val', 'test')]
    shared = [*seen, *(f'{split}_dataloader.dataset.data_root={data}' for split in ('train', 'val', 'test'))]
    iters = ['train_cfg.val_interval=100', 'train_cfg.max_iters=100', 'default_hooks.checkpoint.interval=100']
    teacher = Config.fromfile(ROOT / DETECTOR_TEACHER)
    torch.manual_seed(0)
    torch.save(dict(state_dict=build_model(teacher.model, 'mmdet').state_dict()), tmp_path / 'teacher.pth')
    options = [f'model.teacher.checkpoint={tmp_path}/teacher.pth', 'param_scheduler.0.total_steps=100']
    # A teacher without training: its features teach nothing, their constants can still be matched.
    options += ['model.terms.loss_ofd.weight=0.0', 'default_hooks.prediction.interval=50']
    tool(cli.train, DETECTOR_LCKD, '--work-dir', tmp_path / 'run', '--cfg-options', *shared, *iters, *options)
    plain = Config.fromfile(ROOT / DETECTOR)
    plain.test_dataloader.dataset.update(data_root=str(data), ann_file='ImageSets/Main/train.txt')
    checkpoint = tmp_path / 'run' / 'iter_100.pth'
    ours, theirs = by_both_tests(tool, tmp_path, DETECTOR_LCKD, plain, checkpoint, shared)
    assert ours == theirs
    validated = [e for e in history(tmp_path / 'run') if 'pascal_voc/mAP' in e][-1]['pascal_voc/mAP']
    assert theirs['pascal_voc/mAP'] == pytest.approx(validated)
    assert validated > 0.05
