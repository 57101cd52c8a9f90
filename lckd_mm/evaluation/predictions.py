"""Reads files of predictions, as written by the hosts' test tools, without running code from them."""

import io
import pickle
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Sample key to (truth, prediction): class indices, a scalar (classification) or a map (H, W).
Predictions = dict[str, tuple[Tensor, Tensor]]


def _storage(data: bytes) -> Any:
    # torch's own function with this name unpickles without weights_only.
    return torch.load(io.BytesIO(data), weights_only=True)


def _as_bytes(text: str, encoding: str) -> bytes:
    # Pickle protocol 2, which mmengine writes, encodes bytes this way.
    if encoding != 'latin1':
        raise pickle.UnpicklingError(f'it would run _codecs.encode with {encoding!r}')
    return text.encode('latin1')


# Everything needed for a list of dicts of numbers, tensors and arrays.
_ALLOWED: dict[tuple[str, str], Any] = {
    ('torch._utils', '_rebuild_tensor_v2'): torch._utils._rebuild_tensor_v2,
    ('torch.storage', '_load_from_bytes'): _storage,
    ('torch', 'Size'): torch.Size,
    ('collections', 'OrderedDict'): OrderedDict,
    ('numpy', 'ndarray'): np.ndarray,
    ('numpy', 'dtype'): np.dtype,
    ('_codecs', 'encode'): _as_bytes,
    **{(module, kind.__name__): kind for module in ('builtins', '__builtin__') for kind in (set, slice)},
    **{(f'numpy.{core}.multiarray', name): getattr(np._core.multiarray, name)
       for core in ('core', '_core') for name in ('scalar', '_reconstruct')},
}  # fmt: skip


class _Reader(pickle.Unpickler):
    """Reads numbers, tensors and arrays; refuses any other class or function named in the file."""

    def find_class(self, module: str, name: str) -> Any:
        found = _ALLOWED.get((module, name))
        if found is None:
            raise pickle.UnpicklingError(f'it would run {module}.{name}')
        return found


def read_predictions(path: str | Path, who: str) -> Predictions:
    """The truth and prediction of every sample in a file written by mmengine's ``DumpResults``.

    Such files come from mmpretrain's ``tools/test.py --out FILE.pkl --out-item pred`` and from this package's
    ``tools/test.py --dump FILE.pkl``. They are pickles, read by an unpickler that accepts only numbers, tensors and
    arrays.

    Raises:
        FileNotFoundError: no such file. ValueError: a file that would run code, is damaged, or has no class predictions
            with ground truth.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f'{who}: no predictions at {str(path)!r}; write them with: python tools/test.py CONFIG CHECKPOINT --dump '
            'FILE.pkl'
        )
    try:
        with open(path, 'rb') as file:
            samples = _Reader(file).load()
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        reason = str(error) if 'it would run' in str(error) else f'it is damaged, or no pickle ({type(error).__name__})'
        raise ValueError(
            f'{who}: cannot read the predictions {str(path)!r}: {reason}; write them with: python tools/test.py CONFIG '
            'CHECKPOINT --dump FILE.pkl'
        ) from error
    if not isinstance(samples, list) or not samples:
        raise ValueError(f'{who}: {str(path)!r} holds no list of predictions, but a {type(samples).__name__}')
    found = predictions_of(samples, f'{who}, {str(path)!r}')
    if len(found) < len(samples):
        raise ValueError(
            f'{who}: {str(path)!r} has {len(samples)} samples with {len(found)} names; samples of concatenated data '
            'sets are numbered twice: predict each data set by itself'
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
        if not isinstance(sample, Mapping):
            raise ValueError(f'{who}: a sample is a {type(sample).__name__}, not the dict of a prediction')
        key = next((f'{k} {sample[k]}' for k in ('sample_idx', 'img_path') if sample.get(k) not in (None, '')), None)
        if key is None:
            raise ValueError(f'{who}: samples have neither sample_idx nor img_path, and cannot be told apart')
        found[key] = _truth(sample, who), _predicted(sample, who)
    return found


def _truth(sample: Mapping, who: str) -> Tensor:
    _refuse_boxes(sample, who)
    for name in ('gt_label', 'gt_sem_seg'):
        if name in sample:
            return _compact(sample[name], name, who)
    raise ValueError(f'{who}: samples have no ground truth (gt_label or gt_sem_seg)')


def _predicted(sample: Mapping, who: str) -> Tensor:
    for name in ('pred_label', 'pred_sem_seg'):
        if name in sample:
            return _compact(sample[name], name, who)
    if 'pred_score' in sample:
        return torch.as_tensor(sample['pred_score']).argmax().cpu()
    raise ValueError(f'{who}: samples have no prediction (pred_label, pred_score or pred_sem_seg)')


def _refuse_boxes(sample: Mapping, who: str) -> None:
    if 'pred_instances' in sample:
        raise ValueError(
            f'{who}: these are boxes of a detector; one-against-rest rates need true negatives, and no one can count '
            'the boxes that were rightly not drawn: class bias is defined for classes of images and of pixels'
        )


def _compact(value: Any, name: str, who: str) -> Tensor:
    if name.endswith('sem_seg'):
        labels = torch.as_tensor(value['data'] if isinstance(value, Mapping) else value.data).squeeze(0)
        return labels.to('cpu', torch.int16)
    label = torch.as_tensor(value).flatten()
    if label.numel() != 1:
        raise ValueError(f'{who}: {name} has {label.numel()} labels a sample; class bias needs one')
    return label[0].cpu()
