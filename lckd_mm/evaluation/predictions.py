"""Reads files of predictions, as written by the hosts' test tools, without running code from them."""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, _weights_only_unpickler

from ..errors import one_line, tool_command
from ..storage.files import forbidden_name, installed

#: Sample key to (truth, prediction): class indices, a scalar (classification) or a map (H, W).
Predictions = dict[str, tuple[Tensor, Tensor]]


def _storage(data: bytes) -> Any:
    # torch's own _load_from_bytes unpickles without weights_only.
    return torch.load(io.BytesIO(data), weights_only=True)


def read_predictions(path: str | Path, who: str) -> Predictions:
    """The truth and prediction of every sample in a file written by mmengine's ``DumpResults``.

    Such files come from mmpretrain's ``tools/test.py --out FILE.pkl --out-item pred`` and from this package's
    ``tools/test.py --dump FILE.pkl``. They are pickles of protocol 2, read as checkpoints are:
    numbers, tensors and arrays only.

    Raises:
        FileNotFoundError: no such file. ValueError: a file that would run code, is damaged, or has no class predictions
            with ground truth.
    """
    way = f'write it with: {tool_command("test")} CONFIG CHECKPOINT --dump FILE.pkl'
    if not Path(path).is_file():
        raise FileNotFoundError(f'{who}: no predictions at {str(path)!r}; {way}')
    try:
        storage = (_storage, 'torch.storage._load_from_bytes')
        arrays = [getattr(np.dtypes, f'{name}DType') for name in ('Int8', 'Int16', 'UInt16', 'UInt32', 'Float16')]
        with installed(), torch.serialization.safe_globals([storage, slice, *arrays]), open(path, 'rb') as file:
            samples = _weights_only_unpickler.load(file)
    except Exception as error:  # a damaged pickle can raise anything
        name = forbidden_name(error)
        reason = f'it would run {name}' if name else one_line(error)
        raise ValueError(f'{who}: cannot read the predictions {str(path)!r}: {reason}; {way}') from error
    if not isinstance(samples, list) or not samples or not all(isinstance(sample, Mapping) for sample in samples):
        raise ValueError(f'{who}: {str(path)!r} does not hold a list of predictions; {way}')
    found = predictions_of(samples, f'{who}, {str(path)!r}')
    if len(found) < len(samples):
        raise ValueError(
            f'{who}: {str(path)!r} has {len(samples)} samples with {len(found)} names, as concatenated data sets have; '
            'test each data set by itself'
        )
    return found


def predictions_of(samples: Iterable[Any], who: str) -> Predictions:
    """The truth and prediction of each data sample (or its dict), keyed by ``sample_idx`` or ``img_path``.

    Raises:
        ValueError: samples from a detector, with several labels, without truth or prediction, or without either key.
    """
    found: Predictions = {}
    for sample in samples:
        sample = sample.to_dict() if hasattr(sample, 'to_dict') else sample
        if 'pred_instances' in sample:
            raise ValueError(f'{who}: these are boxes; class bias is defined for classes of images and of pixels')
        key = next((f'{k} {sample[k]}' for k in ('sample_idx', 'img_path') if sample.get(k) not in (None, '')), None)
        if key is None:
            raise ValueError(f'{who}: a sample has neither sample_idx nor img_path to identify it')
        found[key] = _labels(sample, 'gt', who), _labels(sample, 'pred', who)
    return found


def _labels(sample: Mapping, side: str, who: str) -> Tensor:
    """A sample's class indices: ``side`` is 'gt' for the truth, 'pred' for the prediction."""
    if f'{side}_sem_seg' in sample:
        value = sample[f'{side}_sem_seg']
        labels = torch.as_tensor(value['data'] if isinstance(value, Mapping) else value.data).squeeze(0)
        return labels.to('cpu', torch.int16)
    if f'{side}_label' in sample:
        label = torch.as_tensor(sample[f'{side}_label']).flatten()
        if label.numel() != 1:
            raise ValueError(f'{who}: {side}_label holds {label.numel()} labels; class bias needs one per sample')
        return label[0].cpu()
    if f'{side}_score' in sample and side == 'pred':
        return torch.as_tensor(sample['pred_score']).argmax().cpu()
    raise ValueError(f'{who}: a sample has no {side}_label or {side}_sem_seg')
