"""Pairs on COCO, Cityscapes and ADE20K, whose teachers are published: recipes, and steps on files of their formats."""

import functools
import importlib.util
import json
import math
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import init_default_scope
from run_helpers import ROOT, run, scalars
from test_leaf_configs import narrow_detector, narrow_segmentor, predictions, random_weights

from lckd_mm.config import check_data, is_distillation, student_config
from lckd_mm.hosts import build_model, load_config, read_model_config

FOLDERS = ('coco', 'cityscapes', 'ade20k')
PAIRS = sorted(p for folder in FOLDERS for p in (ROOT / 'configs/_base_/pairs').glob(f'*_{folder}.py'))
LEAVES = sorted(p for folder in FOLDERS for p in (ROOT / 'configs' / folder).glob('*.py') if p.stem.count('_') > 2)
# One of each kind of pair, and of each method; the others run under `make test-all`.
SOME = (
    'fgd_retinanet-r101_retinanet-r18',
    'crosskd_gfl-r101_gfl-r18',
    'kd_faster-rcnn',
    'pkd_mask-rcnn',
    'pkd_rtmdet-l_rtmdet-tiny',
    'kd-pkd_yolact',
    'mgd_pspnet',
    'kd-cwd_segformer_mit-b5_pidnet',
    'kd-cwd_segformer_mit-b4',
)
TERMS = {
    'pkd': {'loss_pkd'},
    'fgd': {'loss_fgd'},
    'mgd': {'loss_mgd'},
    'swl2': {'loss_swl2'},
    'bckd': {'loss_bckd', 'loss_boxes'},
    'ld': {'loss_ld'},
    'kd': {'loss_kd'},
    'ofd': {'loss_ofd'},
    'lckd': {'loss_ofd', 'loss_lipschitz'},
    'cwd': {'loss_cwd'},
    'dist': {'loss_dist'},
    'queries': {'loss_queries'},
    'kd-cwd': {'loss_kd', 'loss_cwd', 'loss_cwd_feature'},
    'kd-pkd': {'loss_kd', 'loss_pkd'},
}
# Students that segment instances.
INSTANCES = ('solov2', 'rtmdet-ins', 'yolact')


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


# ---- recipes


@functools.cache
def published(config, kind):
    """What the host's model index says of one of its configs: its score of this kind, and where its weights are."""
    host, _, path = config.partition('::')
    folder = Path(importlib.util.find_spec(host).origin).parent / '.mim/configs' / Path(path).parent
    (index,) = folder.glob('metafile.y*ml')
    for model in yaml.safe_load(index.read_text())['Models']:
        if model.get('Config') == f'configs/{path}':
            results = model['Results'] if isinstance(model['Results'], list) else [model['Results']]
            (score,) = (r['Metrics'][kind] for r in results if kind in r['Metrics'])
            return score, model['Weights']
    raise KeyError(config)


def nets(pair):
    """The student's config, a host's or ours, and the teacher's, as the pair's file writes them."""
    text = pair.read_text()
    return re.search(r"_base_ = \['([^']+)'", text)[1], re.search(r"model='([^']+)'", text)[1]


@functools.cache
def recipe(pair):
    """The teacher that a pair's file gives, and the config of its student alone."""
    student = nets(pair)[0]
    alone = load_config(student) if '::' in student else Config.fromfile(pair.parent / student)
    return Config.fromfile(pair).model.teacher, plain(alone.to_dict())


def plain(config):
    """A value of a config without the scopes that mmengine adds to what is inherited from another package."""
    if isinstance(config, dict):
        return {key: plain(value) for key, value in config.items() if key != '_scope_'}
    return [plain(value) for value in config] if isinstance(config, list | tuple) else config


@pytest.mark.parametrize('pair', PAIRS, ids=lambda p: p.stem)
def test_a_pairs_teacher_is_the_published_one(pair):
    student, teacher = nets(pair)
    kind, written = re.search(r'(box AP|mask AP|mIoU) ([\d.]+) on', pair.read_text()).groups()
    score, weights = published(teacher, kind)
    assert recipe(pair)[0].checkpoint == weights and written == str(score)
    assert (kind == 'mask AP') == pair.name.startswith(INSTANCES)
    readme = (ROOT / 'configs' / pair.stem.rpartition('_')[2] / 'README.md').read_text()
    if '::' not in student:
        student = re.search(r"_base_ = '([^']+)'", (pair.parent / student).read_text())[1]
    # GFL on ResNet18 is not among mmdet's; its figure is that of BCKD's README.
    # DINO on ResNet18 has none.
    ours = {'gfl-r18': 35.8, 'dino-r18': '-'}
    alone = next((score for name, score in ours.items() if name in pair.stem), None) or published(student, kind)[0]
    assert f'| {score} | {alone} |' in readme


@pytest.mark.parametrize('path', LEAVES, ids=lambda p: p.stem)
def test_a_leaf_says_what_its_name_says(path):
    method, name = path.stem.split('_', 1)
    pairs = [p for p in PAIRS if p.stem.endswith(path.parent.name)]
    (pair,) = (p for p in pairs if name.startswith(p.stem.removesuffix(path.parent.name)))
    cfg, (teacher, alone) = Config.fromfile(path), recipe(pair)
    assert plain(cfg.model.student) == alone['model']
    assert cfg.model.teacher == teacher
    terms = TERMS[method] if method != 'crosskd' else {'loss_crosskd', 'loss_boxes'}
    for start, beside in (('crosskd_gfl', {'loss_ld'}), ('mgd_pspnet', {'loss_cwd'})):
        terms = terms | beside if path.stem.startswith(start) else terms
    assert set(cfg.model.terms) == terms
    for key in ('train_dataloader', 'val_dataloader', 'param_scheduler', 'train_cfg', 'val_evaluator'):
        assert plain(cfg[key]) == alone[key], key
    optimizer = plain(cfg.optim_wrapper)
    if method in ('fgd', 'mgd') and path.parent.name == 'coco':
        assert optimizer.pop('clip_grad') == dict(max_norm=35, norm_type=2)
    assert optimizer == alone['optim_wrapper']
    hooks = [hook for hook in plain(cfg.get('custom_hooks', [])) if not hook['type'].startswith('lckd_mm.')]
    assert hooks == alone.get('custom_hooks', [])
    batch = int(re.search(r'_\d+xb(\d+)', name)[1])
    assert cfg.train_dataloader.batch_size == batch
    length = re.search(r'xb\d+-(?:ms-)?(?:(\d+)x|(\d+)e|(\d+)k)_', name)
    epochs = int(length[2] or 0) or 12 * int(length[1] or 0)
    assert (cfg.train_cfg.get('max_epochs'), cfg.train_cfg.get('max_iters')) == (
        epochs or None,
        None if epochs else 1000 * int(length[3]),
    )
    assert len(path.read_text().partition('_base_')[2].splitlines()) <= 15


@pytest.mark.parametrize(
    ('leaf', 'levels', 'weight'),
    [
        ('coco/pkd_retinanet-r101_retinanet-r50_8xb2-2x_coco', ['p3', 'p4', 'p5', 'p6'], 10),
        ('coco/pkd_faster-rcnn-r101_faster-rcnn-r50_8xb2-2x_coco', ['p2', 'p3', 'p4', 'p5'], 6),
        ('coco/pkd_mask-rcnn-swin-s_retinanet-r50_8xb2-2x_coco', ['p3', 'p4', 'p5', 'p6'], 6),
        ('cityscapes/cwd_pspnet_r101-d8_pspnet_r18-d8_4xb2-80k_cityscapes-512x1024', 'logits', 5),
        ('ade20k/kd-cwd_segformer_mit-b4_segformer_mit-b0_8xb2-160k_ade20k-512x512', 'logits', 10),
    ],
)
def test_weights_are_those_of_the_sources(leaf, levels, weight):
    terms = Config.fromfile(f'configs/{leaf}.py').model.terms
    term = terms.get('loss_pkd') or terms.loss_cwd
    assert (term.on, term.weight, term.loss.get('tau', 1)) == (levels, weight, 1)


def test_rtmdet_distils_until_its_strong_augmentation_ends():
    for path in (ROOT / 'configs/coco').glob('*_rtmdet-l_*.py'):
        method, cfg = path.stem.partition('_')[0], Config.fromfile(path)
        if method == 'kd':
            continue  # of class scores: to the end
        *_, stop = cfg.custom_hooks
        assert (stop.term, stop.schedule, stop.by) == (f'loss_{method}', 'stop', 'epoch')
        assert stop.end == cfg.max_epochs - cfg.stage2_num_epochs


def test_every_pair_has_a_leaf_of_each_method_that_fits():
    """A pair whose class scores can be compared has KD, a detector PKD, and one with BatchNorm before a ReLU LONDON."""
    for pair in PAIRS:
        name, _, folder = pair.stem.rpartition('_')
        methods = {p.stem.partition('_')[0] for p in (ROOT / 'configs' / folder).glob(f'*_{name}_*.py')}
        if name.startswith(('dino', 'mask2former')):
            assert methods == {'queries'}
            continue
        if name.startswith(INSTANCES):
            assert methods == {'kd-pkd'}
            continue
        assert ('kd' in methods) == (not name.startswith('mask-rcnn')), name
        assert ('pkd' in methods) == (folder == 'coco') and ('kd-cwd' in methods) == (folder != 'coco'), name
        assert ({'ofd', 'lckd'} <= methods) == (not name.startswith(('mask-rcnn', 'rtmdet', 'segformer'))), name


# ---- a few images in the layout of each data set

# COCO's ids of its 80 classes.
COCO_IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]


@pytest.fixture(scope='module')
def coco(tmp_path_factory):
    """annotations, train2017 with five images, the last without an object, and val2017 with two."""
    from mmdet.datasets import CocoDataset

    root, rng = tmp_path_factory.mktemp('data') / 'coco', np.random.default_rng(0)
    (root / 'annotations').mkdir(parents=True)
    categories = [dict(id=i, name=name) for i, name in zip(COCO_IDS, CocoDataset.METAINFO['classes'], strict=True)]
    for split, count in (('train2017', 5), ('val2017', 2)):
        (root / split).mkdir()
        images, annotations = [], []
        for number in range(count):
            name = f'{number + 9:012d}.jpg'
            cv2.imwrite(str(root / split / name), rng.integers(0, 255, (100, 140, 3), np.uint8))
            images.append(dict(id=number + 9, file_name=name, height=100, width=140))
            for x, y, w, h, category, crowd in ((10, 12, 60, 68, 18, 0), (60, 20, 70, 75, 1, 0), (5, 5, 40, 40, 1, 1)):
                corners = [x, y, x + w, y, x + w, y + h, x, y + h]
                shape = dict(size=[100, 140], counts=[0, 14000]) if crowd else [corners]
                if number < 4:
                    what = dict(image_id=number + 9, category_id=category, segmentation=shape, iscrowd=crowd)
                    annotations.append(dict(what, id=len(annotations) + 1, bbox=[x, y, w, h], area=w * h))
        content = dict(images=images, annotations=annotations, categories=categories)
        (root / f'annotations/instances_{split}.json').write_text(json.dumps(content))
    return root


def segmentation_files(images, labels, image, label, values):
    """An image and its labels, for each of the names."""
    rng = np.random.default_rng(0)
    for number in range(2):
        for folder, name, content in (
            (images, image, rng.integers(0, 255, (96, 192, 3), np.uint8)),
            (labels, label, rng.choice(np.array(values, np.uint8), (12, 24)).repeat(8, 0).repeat(8, 1)),
        ):
            folder.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / name.format(number + 19)), content)


@pytest.fixture(scope='module')
def cityscapes(tmp_path_factory):
    root = tmp_path_factory.mktemp('data') / 'cityscapes'
    for split, city in (('train', 'aachen'), ('val', 'frankfurt')):
        segmentation_files(
            root / 'leftImg8bit' / split / city,
            root / 'gtFine' / split / city,
            f'{city}_000000_{{:06d}}_leftImg8bit.png',
            f'{city}_000000_{{:06d}}_gtFine_labelTrainIds.png',
            [*range(19), 255],
        )
    return root


@pytest.fixture(scope='module')
def ade20k(tmp_path_factory):
    root = tmp_path_factory.mktemp('data') / 'ade/ADEChallengeData2016'
    for split in ('training', 'validation'):
        name = f'ADE_{split.removesuffix("ing").removesuffix("idation")}_{{:08d}}'
        segmentation_files(
            root / 'images' / split, root / 'annotations' / split, f'{name}.jpg', f'{name}.png', range(151)
        )
    return root


# ---- a config as it is, but for widths, image and batch sizes, and the teacher's file

SIDE = 128


def narrow_rtmdet(model):
    share = 0.25 if model.backbone.widen_factor == 1 else 0.125
    widths = [int(w * share) for w in (256, 512, 1024)]
    model.backbone.update(widen_factor=share, deepen_factor=0.167, init_cfg=None)
    model.neck.update(in_channels=widths, out_channels=widths[0], num_csp_blocks=1)
    model.bbox_head.update(in_channels=widths[0], feat_channels=widths[0])
    model.test_cfg.min_bbox_size = -1  # what it has not learnt has no positive sides


def narrow_swin(model):
    model.backbone.update(embed_dims=12, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 4], init_cfg=None)
    model.neck.update(in_channels=[12, 24, 48, 96], out_channels=8)
    model.rpn_head.update(in_channels=8, feat_channels=8)
    model.roi_head.bbox_roi_extractor.out_channels = model.roi_head.mask_roi_extractor.out_channels = 8
    model.roi_head.bbox_head.update(in_channels=8, fc_out_channels=16)
    model.roi_head.mask_head.update(in_channels=8, conv_out_channels=8)


def narrow_segformer(model):
    width = model.backbone.embed_dims // 4
    model.backbone.update(embed_dims=width, num_layers=[1, 1, 1, 1], init_cfg=None)
    model.decode_head.update(in_channels=[width * heads for heads in model.backbone.num_heads], channels=16)


def narrow_pidnet(model):
    model.backbone.update(channels=8, ppm_channels=8, init_cfg=None)
    model.decode_head.update(in_channels=32, channels=32)


def narrow_stdc(model):
    backbone = model.backbone
    backbone.backbone_cfg.update(channels=(8, 16, 32, 64, 128), init_cfg=None)
    backbone.update(last_in_channels=(128, 64), out_channels=16)
    backbone.ffm_cfg.update(in_channels=48, out_channels=32)
    model.decode_head.update(in_channels=32, channels=32)
    for head, width in zip(model.auxiliary_head, (16, 16, 32), strict=True):
        head.update(in_channels=width, channels=8)


NARROW = dict(
    CSPNeXt=narrow_rtmdet,
    SwinTransformer=narrow_swin,
    MixVisionTransformer=narrow_segformer,
    PIDNet=narrow_pidnet,
    STDCContextPathNet=narrow_stdc,
    ResNet=narrow_detector,
    ResNetV1c=narrow_segmentor,
)


def narrow_solov2(model):
    narrow_backbone(model)
    # Its towers normalise 32 groups of channels.
    model.mask_head.update(in_channels=8, feat_channels=32, stacked_convs=1)
    model.mask_head.mask_feature_head.update(feat_channels=32, out_channels=32)
    model.test_cfg.filter_thr = 0.0  # of what it has not learnt


def narrow_yolact(model):
    narrow_backbone(model)
    model.bbox_head.update(in_channels=8, feat_channels=8, num_protos=4)
    model.mask_head.update(in_channels=8, proto_channels=[8, 8, 8, None, 8, 4], num_protos=4)


def narrow_backbone(model):
    model.backbone.update(base_channels=4, stem_channels=4, init_cfg=None)
    model.neck.update(in_channels=[16, 32, 64, 128], out_channels=8)


def narrow_dino(model):
    wide = 1 if model.backbone.depth == 18 else 4
    model.backbone.update(base_channels=4, stem_channels=4, init_cfg=None)
    model.neck.in_channels = [8 * wide, 16 * wide, 32 * wide]
    model.num_queries = 20
    for part in (model.encoder, model.decoder):
        part.num_layers = 1
        part.layer_cfg.ffn_cfg.feedforward_channels = 16


def narrow_mask2former(model):
    head, backbone = model.decode_head, model.backbone
    if backbone.type == 'ResNet':
        backbone.update(base_channels=4, stem_channels=4, init_cfg=None)
        head.in_channels = [16, 32, 64, 128]
    else:
        backbone.update(embed_dims=12, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 4], init_cfg=None)
        head.in_channels = [12, 24, 48, 96]
    head.pixel_decoder.encoder.num_layers, head.transformer_decoder.num_layers = 1, 2
    head.num_queries, head.train_cfg.num_points = 5, 50


def narrow(model):
    model = Config(dict(model=model)).model
    head = model.get('decode_head', {}).get('type')
    special = {'DINO': narrow_dino, 'Mask2FormerHead': narrow_mask2former}
    special |= {'SOLOv2': narrow_solov2, 'YOLACT': narrow_yolact}
    (special.get(head) or special.get(model.type) or NARROW[model.backbone.type])(model)
    if 'decode_head' in model:
        model.data_preprocessor.size = (SIDE, SIDE)
    else:
        model.test_cfg.get('rcnn', model.test_cfg).score_thr = 0.0  # so that there is something to evaluate
    return model


def shrink(steps):
    """Image sizes of a pipeline: an eighth, and no less than the images of a batch need."""

    def less(size):
        return max(size // 8, 64) if isinstance(size, int) else tuple(max(side // 8, 64) for side in size)

    for step in steps:
        for key in ('img_scale', 'scale', 'crop_size', 'size'):
            if key in step:
                step[key] = (SIDE, SIDE) if key in ('crop_size', 'size') else less(step[key])
        if 'scales' in step:
            step.scales = [less(size) for size in step.scales]


@pytest.fixture(scope='module')
def teachers(tmp_path_factory):
    """Narrow teachers and their files, each made once."""
    folder, made = tmp_path_factory.mktemp('teachers'), {}

    def give(source, scope):
        if source not in made:
            model = narrow(read_model_config(source, 'teacher')[0])
            file = folder / f'{len(made)}.pth'
            torch.manual_seed(1)
            torch.save(dict(state_dict=random_weights(model, scope)), file)
            made[source] = dict(model=model, checkpoint=str(file))
        return made[source]

    return give


def small(path, root, work_dir, teachers):
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    cfg.model.student = narrow(cfg.model.student)
    cfg.model.teacher.update(teachers(cfg.model.teacher.model, cfg.default_scope))
    cfg.model.dry_run_size = 64
    cfg.default_hooks.distillation = dict(type='lckd_mm.DistillationHook')
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False, batch_size=2)
        loader.dataset.data_root = str(root)
        shrink(loader.dataset.pipeline)
    for hook in cfg.get('custom_hooks') or ():
        shrink(hook.get('switch_pipeline', ()))
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        if 'ann_file' in evaluator:
            evaluator.ann_file = str(root / 'annotations/instances_val2017.json')
    if 'max_iters' in cfg.train_cfg:
        cfg.train_cfg.update(max_iters=2, val_interval=2)
        cfg.default_hooks.checkpoint.interval = 2
    else:
        cfg.train_cfg.update(max_epochs=1, val_interval=1)
        cfg.default_hooks.checkpoint.interval = 1
    cfg.default_hooks.logger.interval = 1
    cfg.work_dir, cfg.log_level = str(work_dir), 'WARNING'
    check_data(cfg, ('train_dataloader', 'val_dataloader'))
    return cfg


def marked(path):
    return pytest.param(path, id=path.stem, marks=[] if path.stem.startswith(SOME) else pytest.mark.full)


@pytest.mark.parametrize('path', [marked(path) for path in LEAVES])
def test_two_steps_and_a_validation(path, teachers, tmp_path, request):
    cfg = small(path, request.getfixturevalue(path.parent.name), tmp_path / 'run', teachers)
    assert is_distillation(cfg)
    runner = run(cfg)
    steps = 3 if 'dino' in path.stem else 2  # it keeps the image without an object
    assert runner.iter == steps
    entries = scalars(tmp_path / 'run')
    instances = path.stem.partition('_')[2].startswith(INSTANCES)
    metric = f'coco/{"segm" if instances else "bbox"}_mAP' if cfg.default_scope == 'mmdet' else 'mIoU'
    assert any(metric in entry for entry in entries)
    trained = [entry for entry in entries if 'loss' in entry]
    assert len(trained) == steps and all(math.isfinite(entry['loss']) for entry in trained)
    for term in runner.model.terms:
        assert all(math.isfinite(entry[term]) and entry[term] > 0 for entry in trained), term
    (file,) = [*(tmp_path / 'run').glob('iter_*.pth'), *(tmp_path / 'run').glob('epoch_*.pth')]
    student = build_model(student_config(cfg).model, cfg.default_scope)
    student.load_state_dict(torch.load(file, weights_only=False)['state_dict'], strict=True)
    if cfg.default_scope == 'mmdet':
        (sample,) = predictions(student, 320)
        assert torch.isfinite(sample.pred_instances.scores).all()
