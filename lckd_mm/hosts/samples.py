"""Data samples: dummy ones for a dry run, and the sizes, labels, boxes and padding of real ones."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from ..contexts import eval_mode, preserved_rng
from .models import host_of


def training_size(model: nn.Module, default: tuple[int, int] = (224, 224)) -> tuple[int, int]:
    """Height and width that the model's preprocessor pads images to, else ``default``."""
    size = getattr(model.data_preprocessor, 'size', None)
    return tuple(size) if size is not None else default


def fabricate_samples(model: nn.Module, batch: int, size: tuple[int, int]) -> list:
    """Dummy data samples with ground truth for a batch of images of ``size``, for runs where only shapes matter."""
    host, (height, width) = host_of(model), size
    meta = dict(scale_factor=(1.0, 1.0), padding_size=[0, 0, 0, 0], flip=False, flip_direction=None, img_path='')
    meta |= {f'{key}_shape': size for key in ('img', 'ori', 'pad', 'batch_input')}
    samples = []
    for _ in range(batch):
        if host == 'mmseg':
            from mmseg.structures import SegDataSample

            sample = SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=torch.zeros(1, height, width).long()))
        elif host == 'mmdet':
            from mmdet.structures import DetDataSample
            from mmdet.structures.mask import BitmapMasks

            boxes = torch.tensor([[width * 0.2, height * 0.2, width * 0.8, height * 0.8]])
            truth = InstanceData(bboxes=boxes, labels=torch.zeros(1).long())
            # Only for models that read masks: some heads would treat them as tensors.
            if getattr(model, 'with_mask', False) or hasattr(model, 'panoptic_head'):
                truth.masks = BitmapMasks(np.ones((1, height, width), dtype=np.uint8), height, width)
            ignored = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
            sample = DetDataSample(metainfo=meta, gt_instances=truth, ignored_instances=ignored)
        elif host == 'mmpretrain':
            from mmpretrain.structures import DataSample

            sample = DataSample(metainfo=meta).set_gt_label(0)
        else:
            raise TypeError(f'{type(model).__name__} is not a model of mmpretrain, mmseg or mmdet')
        samples.append(sample)
    return samples


def run_once(model: nn.Module, size: tuple[int, int], mode: str, gradient: bool = False) -> Any:
    """One forward of a zero image in eval mode, without gradient by default; restores modes and random states."""
    parameter = next(model.parameters())
    with preserved_rng(), eval_mode(model, gradient):
        return model(parameter.new_zeros(1, 3, *size), fabricate_samples(model, 1, size), mode=mode)


def valid_region(inputs: Tensor, data_samples: list | None) -> Tensor | None:
    """``(B, 1, H, W)``, true at image pixels, false at padding; None if there are no samples or nothing is padded."""
    if not data_samples:
        return None
    height, width = inputs.shape[2:]
    mask, padded = torch.ones(len(inputs), 1, height, width, dtype=torch.bool, device=inputs.device), False
    for row, sample in zip(mask, data_samples, strict=False):
        left, right, top, bottom = sample.metainfo.get('padding_size') or (0, 0, 0, 0)
        h, w = (sample.metainfo.get('img_shape') or (height, width))[:2]
        # mmseg gives the padding of each side; the others pad at the right and bottom, beyond img_shape.
        bottom, right = max(bottom, height - min(h, height)), max(right, width - min(w, width))
        if left or right or top or bottom:
            padded = True
            inside = torch.zeros_like(row)
            inside[:, top : height - bottom, left : width - right] = True
            row &= inside
    return mask if padded else None


def resized_labels(z: Tensor, data_samples: list) -> Tensor:
    """The segmentation labels, resized by nearest neighbour to the logits ``z`` (N, C, H, W): ``(N, H, W)``."""
    labels = torch.stack([sample.gt_sem_seg.data for sample in data_samples]).to(z.device)
    return F.interpolate(labels.float(), z.shape[2:], mode='nearest').squeeze(1).long()


def class_targets(z: Tensor, data_samples: list | None, who: str) -> Tensor:
    """The class label of each sample, ``(N,)``, or for maps (N, C, H, W) of each position, ``(N, H, W)``.

    Raises:
        ValueError: the samples have no labels, mixed labels or several per sample.
    """
    if data_samples and z.dim() == 4 and 'gt_sem_seg' in data_samples[0]:
        return resized_labels(z, data_samples)
    if data_samples and z.dim() == 2 and 'gt_label' in data_samples[0]:
        labels = torch.stack([sample.gt_label for sample in data_samples]).to(z.device)
        # Mixup and similar transforms keep the first label and store the mixture in gt_score.
        mixed = any('gt_score' in sample and sample.gt_score.max() < 1 - 1e-6 for sample in data_samples)
        if labels.shape == (len(z), 1) and not mixed:
            return labels.flatten()
    raise ValueError(
        f'{who}: needs one label per sample (gt_label) or position (gt_sem_seg), which this batch does not have; with '
        'mixed or several labels there is no target class'
    )


def relative_boxes(data_samples: list | None, like: Tensor) -> list[Tensor]:
    """Each sample's ground-truth boxes, ``(K, 4)``, as fractions of its padded image's width and height."""
    if not data_samples or not all('gt_instances' in s and 'bboxes' in s.gt_instances for s in data_samples):
        raise ValueError(
            "FGDLoss: needs ground-truth boxes (gt_instances.bboxes), which only mmdet's samples have; on other hosts "
            'compare features by FitNetsLoss or ATLoss'
        )
    boxes = []
    for sample in data_samples:
        meta, corners = sample.metainfo, sample.gt_instances.bboxes
        height, width = (meta.get('batch_input_shape') or meta.get('pad_shape') or meta['img_shape'])[:2]
        corners = getattr(corners, 'tensor', corners)
        boxes.append(corners.to(like) / like.new_tensor([width, height, width, height]))
    return boxes
