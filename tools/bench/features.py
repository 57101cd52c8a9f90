"""Feature maps for the benchmarks: nets of the three hosts on digit scenes, at initialisation and after training."""

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scenes.scene import compose_scene

from lckd_mm.cli.launch import replace_sync_bn
from lckd_mm.hosts import build_model, read_model_config
from lckd_mm.taps import FeatureTaps

STAGES = {f'stage{i}': f'backbone.layer{i}@preact' for i in range(1, 5)}
WRN_TAPS = {'group1': 'backbone.block2.0.bn1', 'group2': 'backbone.block3.0.bn1', 'group3': 'backbone.bn1'}
ROLES = ('student', 'teacher')
NORMALISATION = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])


@dataclass(frozen=True)
class ShapeSet:
    """One row of the benchmark: two nets of equal widths, their taps and the images."""

    title: str
    host: str
    student: Any
    teacher: Any
    taps: dict[str, str]
    batch: int
    size: tuple[int, int]
    train_batch: int
    train_size: int
    overrides: dict[str, Any] = field(default_factory=dict)


def _classifier(backbone: dict, channels: int) -> dict:
    return dict(
        type='ImageClassifier',
        data_preprocessor=dict(type='ClsDataPreprocessor', num_classes=10, to_rgb=False, **NORMALISATION),
        backbone=backbone,
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=10, in_channels=channels, loss=dict(type='CrossEntropyLoss')),
    )


def _wrn(depth: int) -> dict:
    return _classifier(dict(type='lckd_mm.WideResNet', depth=depth, widen_factor=4), 256)


def _resnet(depth: int) -> dict:
    return _classifier(dict(type='ResNet', depth=depth), 2048)


SETS = {
    'cifar': ShapeSet(
        'WRN28-4 → WRN16-4, 128 x 32 x 32', 'mmpretrain', _wrn(16), _wrn(28), WRN_TAPS, 128, (32, 32), 64, 32
    ),
    'imagenet': ShapeSet(
        'ResNet152 → ResNet50, 32 x 224 x 224', 'mmpretrain', _resnet(50), _resnet(152), STAGES, 32, (224, 224), 32, 64
    ),
    'fcn': ShapeSet(
        'FCN-R101-d8 → FCN-R50-d8, 2 x 512 x 512',
        'mmseg',
        'mmseg::fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py',
        'mmseg::fcn/fcn_r101-d8_4xb4-20k_voc12aug-512x512.py',
        STAGES,
        2,
        (512, 512),
        4,
        96,
        {'decode_head.num_classes': 11, 'auxiliary_head.num_classes': 11, 'data_preprocessor.size': (96, 96)},
    ),
    'retinanet': ShapeSet(
        'RetinaNet R101 → R50, P3-P7, 2 x 800 x 1344',
        'mmdet',
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        'mmdet::retinanet/retinanet_r101_fpn_1x_coco.py',
        {f'p{i + 3}': f'neck[{i}]' for i in range(5)},
        2,
        (800, 1344),
        4,
        128,
        {'bbox_head.num_classes': 10, 'backbone.frozen_stages': -1, 'backbone.norm_eval': False},
    ),
}


def model_config(which: ShapeSet, role: str) -> dict:
    """The model dict of a net without published weights, which may not be available."""
    cfg = Config(dict(model=read_model_config(getattr(which, role), role)[0]))
    cfg.merge_from_dict({f'model.{key}': value for key, value in which.overrides.items()})
    model = cfg.model.to_dict()
    model.pop('pretrained', None)
    model['backbone'].pop('init_cfg', None)
    replace_sync_bn(model)
    return model


def batches(which: ShapeSet, batch: int, size: tuple[int, int], split: str = 'train', start: int = 0) -> Iterator[dict]:
    """Endless batches in the format of a host's loader: images uint8 (3, H, W), and data samples."""
    index = start
    while True:
        samples = [_sample(which.host, split, index + i, size) for i in range(batch)]
        index += batch
        yield dict(inputs=[image for image, _ in samples], data_samples=[sample for _, sample in samples])


def _sample(host: str, split: str, index: int, size: tuple[int, int]) -> tuple[Tensor, Any]:
    height, width = size
    if host == 'mmpretrain':
        from mmpretrain.structures import DataSample

        # One digit of a scene with some surroundings.
        scene = compose_scene(split, index, size=max(96, 2 * height))
        left, top, right, bottom = scene.boxes[0]
        side = int(1.3 * max(right - left, bottom - top)) + 2
        x, y = (left + right) // 2, (top + bottom) // 2
        padded = cv2.copyMakeBorder(scene.image, side, side, side, side, cv2.BORDER_REFLECT_101)
        crop = padded[y + side - side // 2 :, x + side - side // 2 :][:side, :side]
        image = cv2.resize(crop, (width, height), interpolation=cv2.INTER_AREA)
        return _to_tensor(image), DataSample().set_gt_label(int(scene.labels[0]) - 1)
    scene = compose_scene(split, index, size=max(height, width))
    top, left = (max(height, width) - height) // 2, (max(height, width) - width) // 2
    image = scene.image[top : top + height, left : left + width]
    meta = dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size, scale_factor=(1.0, 1.0))
    if host == 'mmseg':
        from mmseg.structures import SegDataSample

        mask = torch.from_numpy(scene.mask[top : top + height, left : left + width].astype(np.int64))[None]
        return _to_tensor(image), SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=mask))
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import HorizontalBoxes

    boxes = torch.from_numpy(scene.boxes).float() - torch.tensor([left + 1, top + 1, left, top])
    boxes[:, 0::2] = boxes[:, 0::2].clamp(0, width)
    boxes[:, 1::2] = boxes[:, 1::2].clamp(0, height)
    kept = (boxes[:, 2] - boxes[:, 0] > 1) & (boxes[:, 3] - boxes[:, 1] > 1)
    truth = InstanceData(bboxes=HorizontalBoxes(boxes[kept]), labels=torch.from_numpy(scene.labels)[kept] - 1)
    none = InstanceData(bboxes=HorizontalBoxes(torch.zeros(0, 4)), labels=torch.zeros(0).long())
    return _to_tensor(image), DetDataSample(metainfo=meta, gt_instances=truth, ignored_instances=none)


def _to_tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def build(which: ShapeSet, role: str, seed: int = 0) -> nn.Module:
    init_default_scope(which.host)
    MMLogger.get_instance('bench', log_level='ERROR')  # hosts would log every initialised weight
    torch.manual_seed(seed + (role == 'teacher'))
    model = build_model(model_config(which, role), which.host)
    model.init_weights()
    return model


def trained(name: str, role: str, steps: int, folder: Path, seed: int = 0) -> nn.Module:
    """The net after ``steps`` of training with its host's own loss; cached in ``folder``."""
    which = SETS[name]
    model = build(which, role, seed)
    if steps == 0:
        return model
    recipe = json.dumps([model_config(which, role), which.train_batch, which.train_size, steps, seed], default=str)
    path = folder / f'{name}-{role}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.pth'
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model
    print(f'training {name} {role} for {steps} steps …', flush=True)
    model.train()
    if which.host == 'mmpretrain':
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    peak = optimizer.param_groups[0]['lr']
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps, cycle_momentum=False)
    data = batches(which, which.train_batch, (which.train_size,) * 2)
    history = []
    for _, batch in zip(range(steps), data):
        batch = model.data_preprocessor(batch, True)
        loss, _ = model.parse_losses(model(**batch, mode='loss'))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        history.append(loss.item())
    tenth = max(1, steps // 10)
    print(f'  loss {np.mean(history[:tenth]):.3f} → {np.mean(history[-tenth:]):.3f}', flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f'.{os.getpid()}.part')
    torch.save(model.state_dict(), partial)
    partial.replace(path)
    return model


def feature_maps(name: str, steps: int, folder: Path, seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    """Student's and teacher's maps for one batch of validation scenes; BatchNorm uses batch statistics."""
    which = SETS[name]
    batch = next(batches(which, which.batch, which.size, 'val'))
    return tuple(_tapped(trained(name, role, steps, folder, seed), which.taps, role, batch) for role in ROLES)


@torch.no_grad()
def _tapped(model: nn.Module, addresses: dict[str, str], role: str, batch: dict) -> list[Tensor]:
    data = model.data_preprocessor(batch, False)
    taps = FeatureTaps(addresses, role)
    corner = data['inputs'][:1, :, :128, :128]
    taps.trace(model.eval(), lambda: model(corner, data['data_samples'][:1], mode='tensor'))
    with taps.record(model.train(), stop=True) as features:
        model(data['inputs'], data['data_samples'], mode='tensor')
    return [features[key].clone() for key in addresses]
