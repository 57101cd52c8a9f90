"""The detection configs on files in VOC's own folders: trained, validated, and loaded by the host."""

import math
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from run_helpers import ROOT, count, run, scalars

from lckd_mm.config import check_data, student_config
from lckd_mm.hosts import build_model, fabricate_samples, read_model_config

CONFIGS = ROOT / 'configs' / 'detection'
FAMILIES = {
    'lckd-kd_ssd300-r50_ssd300-r18_8xb8_voc0712': ('loss_ofd', 'loss_lipschitz', 'loss_kd'),
    'lckd-kd_ssd300-r50_ssd300-mobilenetv1_8xb8_voc0712': ('loss_ofd', 'loss_lipschitz', 'loss_kd'),
    'lckd-kd_retinanet-r50_retinanet-r18_8xb2_voc0712': ('loss_ofd', 'loss_lipschitz', 'loss_kd'),
    'fgd_retinanet-r50_retinanet-r18_8xb2_voc0712': ('loss_fgd',),
    'ie_retinanet-r50_retinanet-r18_8xb2_voc0712': ('loss_inherit', 'loss_explore'),
    'lckd_faster-rcnn-r50_faster-rcnn-r18_8xb2_voc0712': ('loss_ofd', 'loss_lipschitz'),
    'lckd-kd_gfl-r50_gfl-r18_8xb2_voc0712': ('loss_ofd', 'loss_lipschitz', 'loss_kd'),
}


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def annotation(name, height, width, objects):
    """An annotation with the fields that VOC writes, also those that mmdet does not read."""
    root = ElementTree.Element('annotation')

    def put(parent, tag, text=None):
        child = ElementTree.SubElement(parent, tag)
        child.text = None if text is None else str(text)
        return child

    put(root, 'folder', 'VOC')
    put(root, 'filename', f'{name}.jpg')
    size = put(root, 'size')
    for tag, value in (('width', width), ('height', height), ('depth', 3)):
        put(size, tag, value)
    put(root, 'segmented', 0)
    for kind, difficult, box in objects:
        item = put(root, 'object')
        for tag, value in (('name', kind), ('pose', 'Left'), ('truncated', 0), ('difficult', difficult)):
            put(item, tag, value)
        corners = put(item, 'bndbox')
        for tag, value in zip(('xmin', 'ymin', 'xmax', 'ymax'), box):
            put(corners, tag, value)
    return ElementTree.tostring(root)


@pytest.fixture(scope='module')
def devkit(tmp_path_factory):
    """VOCdevkit with two images each of VOC2007 trainval and test, and of VOC2012 trainval."""
    root, rng = tmp_path_factory.mktemp('data') / 'VOCdevkit', np.random.default_rng(0)
    splits = {
        'VOC2007': {'trainval': ['000005', '000007'], 'test': ['000001', '000002']},
        'VOC2012': {'trainval': ['2008_000002', '2008_000003']},
    }
    for year, parts in splits.items():
        for folder in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
            (root / year / folder).mkdir(parents=True)
        for split, names in parts.items():
            (root / year / f'ImageSets/Main/{split}.txt').write_text('\n'.join(names) + '\n')
            for name in names:
                pixels = rng.integers(0, 255, (100, 140, 3), np.uint8)
                cv2.imwrite(str(root / year / f'JPEGImages/{name}.jpg'), pixels)
                objects = [('dog', 0, (10, 12, 70, 80)), ('person', 0, (60, 20, 130, 95)), ('cat', 1, (5, 5, 60, 60))]
                (root / year / f'Annotations/{name}.xml').write_bytes(annotation(name, 100, 140, objects))
    return root


def narrowed(model):
    """The same net with few channels, and without weights to fetch."""
    model = Config(dict(model=model)).model
    backbone = model.backbone
    backbone.init_cfg = None
    if backbone.type == 'ResNet':
        backbone.update(base_channels=4, stem_channels=4)
        widths = [4 * 2**i * (1 if backbone.depth == 18 else 4) for i in range(4)]
    else:
        backbone.width_multiplier = 0.125
        widths = [16, 32, 64, 128]
    if model.neck.type == 'SSDNeck':
        widths = (*widths[1:], 16, 8, 8)
        model.neck.update(in_channels=widths[:3], out_channels=widths)
        model.bbox_head.in_channels = widths
        return model
    model.neck.update(in_channels=widths, out_channels=8)
    if 'rpn_head' in model:
        model.rpn_head.update(in_channels=8, feat_channels=8)
        model.roi_head.bbox_roi_extractor.out_channels = 8
        model.roi_head.bbox_head.update(in_channels=8, fc_out_channels=16)
    else:
        # GFL normalises 32 groups of channels, and one channel on a map of 1 x 1 is none.
        model.bbox_head.update(in_channels=8, feat_channels=64, stacked_convs=1)
    return model


def small_run(name, devkit, work_dir):
    """A leaf as it is, but for widths, image sizes, and the teacher's file."""
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    cfg.model.student = narrowed(cfg.model.student)
    teacher = narrowed(read_model_config(cfg.model.teacher.model, 'teacher')[0])
    work_dir.mkdir()
    torch.manual_seed(1)
    torch.save(dict(state_dict=build_model(teacher, 'mmdet').state_dict()), work_dir / 'teacher.pth')
    cfg.model.teacher.update(model=teacher, checkpoint=str(work_dir / 'teacher.pth'))
    cfg.model.setdefault('dry_run_size', 64)
    for term in cfg.model.terms.values():
        if isinstance(term.get('teacher_connector'), dict) and 'batches' in term.teacher_connector:
            term.teacher_connector.batches = 2
    repeated = cfg.train_dataloader.dataset
    repeated.times = 1
    for dataset in (*repeated.dataset.datasets, cfg.val_dataloader.dataset):
        dataset.data_root = str(devkit)
        for step in dataset.pipeline:
            if step.type == 'Resize' and step.keep_ratio:
                step.scale = (160, 96)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    cfg.test_dataloader = cfg.val_dataloader
    cfg.train_dataloader.batch_size = 2
    cfg.train_cfg.update(max_epochs=1, val_interval=1)
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.distillation = dict(type='lckd_mm.DistillationHook')
    hooks = [h for h in cfg.get('custom_hooks', []) if h.type != 'lckd_mm.LipschitzMonitorHook']
    # It reads every tap of both nets in each iteration.
    stages = ['stage2', 'stage3', 'stage4']
    cfg.custom_hooks = [*hooks, dict(type='lckd_mm.LipschitzMonitorHook', on=stages, interval=1)]
    cfg.work_dir, cfg.log_level = str(work_dir / 'run'), 'WARNING'
    return cfg


@pytest.mark.parametrize('name', count(list(FAMILIES), list(FAMILIES)[::2]))
def test_two_steps_on_vocs_files(name, devkit, tmp_path):
    cfg = small_run(name, devkit, tmp_path / 'work')
    check_data(cfg, ('train_dataloader', 'val_dataloader'))
    runner = run(cfg)
    assert runner.iter == 2
    entries = scalars(tmp_path / 'work' / 'run')
    steps = [e for e in entries if 'loss' in e]
    assert len(steps) == 2
    for term in FAMILIES[name]:
        sign = -1 if term == 'loss_explore' else 1  # it is as far below 0 as the student is away
        assert all(math.isfinite(e[term]) and sign * e[term] > 0 for e in steps), term
    assert all(math.isfinite(e['loss']) for e in steps)
    (validated,) = [e for e in entries if 'pascal_voc/mAP' in e]
    assert 0 <= validated['pascal_voc/mAP'] <= 1

    saved = torch.load(tmp_path / 'work' / 'run' / 'epoch_1.pth', weights_only=False)['state_dict']
    plain = student_config(cfg).model
    model = build_model(plain, 'mmdet')
    model.load_state_dict(saved, strict=True)
    (sample,) = predictions(model)
    assert torch.isfinite(sample.pred_instances.scores).all()
    if 'ssd300' in name:
        plain.bbox_head.type = 'SSDHead'
        build_model(plain, 'mmdet').load_state_dict(saved, strict=True)


@torch.no_grad()
def predictions(model):
    model.eval()
    image = torch.randn(1, 3, 300, 300)
    return model(image, fabricate_samples(model, 1, (300, 300)), mode='predict')


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('*_*_*_8xb*_voc0712.py')), ids=lambda p: p.stem)
def test_a_leaf_says_what_its_name_says(path):
    method, teacher, student, tail = path.stem.split('_', 3)
    cfg = Config.fromfile(path)
    alone = Config.fromfile(CONFIGS / f'{student}_{tail}.py')
    assert cfg.model.student == alone.model
    for key in ('train_dataloader', 'val_dataloader', 'optim_wrapper', 'param_scheduler', 'train_cfg', 'val_evaluator'):
        assert cfg[key] == alone[key], key
    batch = int(tail.split('_')[0].partition('xb')[2])
    assert cfg.train_dataloader.batch_size == batch
    assert cfg.auto_scale_lr.base_batch_size == 8 * batch
    for role, net in (
        (read_model_config(cfg.model.teacher.model, 'teacher')[0], teacher),
        (cfg.model.student, student),
    ):
        family, _, backbone = net.rpartition('-')
        assert role['type'] == {
            'ssd300': 'SingleStageDetector', 'retinanet': 'RetinaNet', 'faster-rcnn': 'FasterRCNN', 'gfl': 'GFL'
        }[family]  # fmt: skip
        assert backbone == 'mobilenetv1' or role['backbone']['depth'] == int(backbone[1:])
    names = {'lckd': {'loss_ofd', 'loss_lipschitz'}, 'ie': {'loss_inherit', 'loss_explore'}}
    assert set(cfg.model.terms) == set().union(*(names.get(part, {f'loss_{part}'}) for part in method.split('-')))
    epochs = cfg.train_cfg.max_epochs
    file = teacher.replace('-', '_') + '_fpn_1x_voc0712' if teacher == 'retinanet-r50' else f'{teacher}_{tail}'
    assert cfg.model.teacher.checkpoint == f'work_dirs/{file}/epoch_{epochs}.pth'


@pytest.mark.parametrize(
    ('leaf', 'classes', 'student', 'teacher', 'about'),
    [
        # Every class as likely, against 0.99 for the background; then heads' prior against a teacher's 0.001.
        ('kd_ssd300-r50_ssd300-r18_8xb8', 21, [0.0] * 21, [0.0] * 20 + [7.6], 6.0),
        ('kd_retinanet-r50_retinanet-r18_8xb2', 20, [-4.6] * 20, [-6.9] * 20, 1.3),
    ],
)
def test_kd_begins_at_the_size_that_its_comment_says(leaf, classes, student, teacher, about):
    term = Config.fromfile(CONFIGS / f'{leaf}_voc0712.py').model.terms.loss_kd
    loss = MODELS.build(dict(term.loss, num_classes=classes, activation='softmax' if classes == 21 else 'sigmoid'))
    # Two anchors a position.
    student, teacher = (torch.tensor(2 * scores).view(1, -1, 1, 1).expand(1, -1, 3, 4) for scores in (student, teacher))
    assert term.weight * loss([student], [teacher]).item() == pytest.approx(about, rel=0.05)
