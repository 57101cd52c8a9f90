"""Data samples: dummy ones for a dry run, and the sizes, labels, boxes and padding of real ones."""

import copy
import re
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from ..contexts import eval_mode, preserved_rng, saved_state, training_branches
from .inputs import image_channels
from .models import host_of
from .modules import forward

#: mmseg's label of pixels that do not count.
_IGNORED = 255


def training_size(model: nn.Module, default: tuple[int, int] = (224, 224)) -> tuple[int, int]:
    """Height and width that the model's preprocessor pads images to, else those of ``default``, padded by it."""
    preprocessor = getattr(model, 'data_preprocessor', None)
    if (size := getattr(preprocessor, 'size', None)) is not None:
        return tuple(size)
    divisor = getattr(preprocessor, 'pad_size_divisor', 1)
    return tuple(-(-n // divisor) * divisor for n in default)


def own_sizes(model: nn.Module) -> list[tuple[int, int]]:
    """Heights and widths for which parts of a model are made (their ``img_size``)."""
    sizes = (getattr(module, 'img_size', None) for module in model.modules())
    sizes = ((size, size) if isinstance(size, int) else size for size in sizes)
    return list(dict.fromkeys(tuple(s) for s in sizes if isinstance(s, (tuple, list)) and len(s) == 2))


def fabricate_samples(model: nn.Module, batch: int, size: tuple[int, int]) -> list:
    """Dummy data samples with ground truth for a batch of images of ``size``, for runs where only shapes matter."""
    host, (height, width) = host_of(model), size
    meta = dict(
        sample_idx=0, scale_factor=(1.0, 1.0), padding_size=[0, 0, 0, 0], flip=False, flip_direction=None, img_path=''
    )
    meta |= {f'{key}_shape': size for key in ('img', 'ori', 'pad', 'batch_input')}
    samples = []
    for _ in range(batch):
        if host == 'mmseg':
            from mmseg.structures import SegDataSample

            # PIDNet reads a map of edges, too.
            maps = {key: PixelData(data=torch.zeros(1, height, width).long()) for key in ('gt_sem_seg', 'gt_edge_map')}
            sample = SegDataSample(metainfo=meta, **maps)
        elif host == 'mmdet':
            from mmdet.structures import DetDataSample
            from mmdet.structures.mask import BitmapMasks

            boxes = torch.tensor([[width * 0.2, height * 0.2, width * 0.8, height * 0.8]])
            truth = InstanceData(bboxes=boxes, labels=torch.zeros(1).long())
            # Only for models that read masks: some heads would treat them as tensors.
            if _reads_masks(model):
                truth.masks = BitmapMasks(np.ones((1, height, width), dtype=np.uint8), height, width)
            ignored = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
            sample = DetDataSample(metainfo=meta, gt_instances=truth, ignored_instances=ignored)
            if (shrink := _semantic_stride(model)) is not None:
                sample.gt_sem_seg = PixelData(sem_seg=torch.zeros(1, height // shrink, width // shrink).long())
            if getattr(model, 'roi_head', None) is not None and not getattr(model, 'with_rpn', True):
                sample.proposals = InstanceData(bboxes=boxes.clone())
        elif host == 'mmpretrain':
            from mmpretrain.structures import DataSample

            sample = DataSample(metainfo=meta).set_gt_label(0)
        else:
            raise TypeError(f'{type(model).__name__} is not a model of mmpretrain, mmseg or mmdet')
        samples.append(sample)
    return samples


def _reads_masks(detector: nn.Module) -> bool:
    """Whether a detector's loss needs instance masks."""
    if getattr(detector, 'with_mask', False) or hasattr(detector, 'panoptic_head'):
        return True
    kinds = {kind.__name__ for kind in type(getattr(detector, 'bbox_head', None)).__mro__}
    return 'RTMDetInsHead' in kinds


def _semantic_stride(detector: nn.Module) -> int | None:
    """The stride at which a detector's loss needs a semantic map; None if it needs none."""
    if getattr(detector, 'semantic_head', None) is not None:
        return 1
    # Such a head compares its own resolution, that of the pyramid's level of stride 8, to which its data set resizes.
    return 8 if getattr(getattr(detector, 'roi_head', None), 'semantic_head', None) is not None else None


def run_once(
    model: nn.Module,
    size: tuple[int, int],
    mode: str,
    gradient: bool = False,
    channels: int | None = None,
    training: bool = False,
) -> Any:
    """One forward of a zero image in eval mode, without gradient by default; restores the model and random states.

    Args:
        channels: of the image; by default those that the model takes.
        training: take the branches of training, see :func:`~lckd_mm.contexts.training_branches`.
    """
    parameter, restore = next(model.parameters()), saved_state(model)
    images = parameter.new_zeros(1, channels or image_channels(model), *size)
    samples = fabricate_samples(model, 1, size) if host_of(model) is not None else []
    try:
        with preserved_rng(), eval_mode(model, gradient), training_branches(model, training):
            return forward(model, images, [sample.to(parameter.device) for sample in samples], mode)
    finally:
        restore()


def lacks_operator(model: nn.Module, error: Exception) -> bool:
    """Whether a forward on the CPU failed because one of its operators exists for other devices alone."""
    on_cpu = next(model.parameters()).device.type == 'cpu'
    words = r'device cpu not found|not implemented (for|on)|cuda|\bgpus?\b'
    return on_cpu and (isinstance(error, NotImplementedError) or bool(re.search(words, str(error), re.IGNORECASE)))


def samples_for_loss(model: nn.Module, data_samples: list | None, inputs: Tensor) -> list | None:
    """Copies of samples, for a loss of a model with classes of its own: labels that it does not have become 0.

    Of another host, they have no ground truth that the model reads, and get a made-up one.
    """
    if data_samples and host_of(model) not in (None, type(data_samples[0]).__module__.partition('.')[0]):
        samples = fabricate_samples(model, len(data_samples), tuple(inputs.shape[2:]))
        for sample, own in zip(samples, data_samples):
            sample.set_metainfo(own.metainfo)
        return [sample.to(inputs.device) for sample in samples]
    samples = copy.deepcopy(data_samples)
    numbers = [n for m in model.modules() if isinstance(n := getattr(m, 'num_classes', None), int)]
    # The largest: a region proposal head counts one class.
    classes = max(numbers, default=None)
    for sample in samples or () if classes else ():
        for field, name in (('gt_sem_seg', 'data'), ('gt_instances', 'labels'), ('gt_label', None)):
            if field in sample:
                owner, name = (sample.get(field), name) if name else (sample, field)
                labels = owner.get(name)
                setattr(owner, name, labels.masked_fill((labels >= classes) & (labels != _IGNORED), 0))
    return samples


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


def sample_indices(data_samples: list | None, who: str) -> Tensor:
    """The index of each sample in its data set, ``(B,)``, int64, on the CPU.

    Raises:
        ValueError: the samples do not carry it.
    """
    indices = [sample.get('sample_idx') for sample in data_samples or ()]
    if not indices or None in indices:
        raise ValueError(
            f'{who}: needs the index of each sample in the data set (sample_idx), which the data samples lack; add '
            "'sample_idx' to the meta_keys of the pipeline's last step (mmpretrain's PackInputs has it by default)"
        )
    return torch.tensor([int(index) for index in indices])


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
