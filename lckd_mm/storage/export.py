"""Export of a model's plain forward to ONNX or torch.export; the file is kept only if its outputs match."""

import os
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import arguments
from ..contexts import eval_mode
from ..errors import one_line


class PlainForward(nn.Module):
    """Maps normalised images ``(B, C, H, W)`` to a host model's tensors of ``mode='tensor'``, in the host's order.

    These are class scores of a classifier or segmentor (at the head's stride), and raw maps of a detector's head:
    without decoding, NMS and resizing.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(_tensors(self.model(inputs, mode='tensor')))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"export: the model's plain forward gives a {type(value).__name__}, expected tensors")
    return [tensor for one in value for tensor in _tensors(one)]


def export(
    model: nn.Module,
    path: str | Path,
    size: tuple[int, int],
    dynamic_batch: bool = False,
    tolerance: float = 1e-4,
    channels: int = 3,
) -> tuple[list[tuple[int, ...]], float]:
    """Write ``path`` and compare its outputs with the model's on random images.

    Args:
        model: a host's model, on the CPU.
        path: ends in .onnx (run with onnxruntime for the comparison) or .pt2 (``torch.export``).
        size: height and width of the images.
        dynamic_batch: allow any batch size; also compared with batches of 1 and 3.
        tolerance: largest allowed difference, relative to the largest output.
        channels: of the images.
    Returns:
        The outputs' shapes, and the largest difference found, relative to the largest output.
    Raises:
        ValueError: another suffix, no forward of images alone or one that cannot be exported, or outputs that differ by
            more; no new file is left, and an existing one is unchanged. ModuleNotFoundError: the format's packages are
            missing.
    """
    path = Path(path)
    kind = arguments.choice('export', 'suffix', path.suffix, _FORMATS)
    write, run = _FORMATS[kind]
    if kind == '.onnx':
        missing = [name for name in ('onnx', 'onnxscript', 'onnxruntime') if find_spec(name) is None]
        if missing:
            raise ModuleNotFoundError(f'export: missing packages; pip install {" ".join(missing)}', name=missing[0])
    generator = torch.Generator().manual_seed(0)
    plain = PlainForward(model)
    # Two images for a dynamic batch: exporters treat a 1 as constant.
    batches = [torch.randn(n, channels, *size, generator=generator) for n in ((2, 1, 3) if dynamic_batch else (1,))]
    shapes = {'inputs': {0: torch.export.Dim('batch', min=1)}} if dynamic_batch else None
    path.parent.mkdir(parents=True, exist_ok=True)
    with eval_mode(model), tempfile.TemporaryDirectory(dir=path.parent, prefix=f'.{path.stem}-') as folder:
        draft = Path(folder) / path.name
        try:
            expected = plain(batches[0])
        except Exception as error:  # a host may raise anything
            way = (
                'give --size H W of an image that it takes'
                if isinstance(error, RuntimeError)
                else 'it has no plain forward of images alone; its checkpoint is the plain one of its host: run it '
                'there, or deploy it with mmdeploy'
            )
            raise ValueError(
                f'export: {type(model).__name__} fails on an image of {size[0]} x {size[1]} ({one_line(error)}): {way}'
            ) from error
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                write(plain, batches[0], draft, shapes)
        except Exception as error:  # exporters can raise anything
            raise ValueError(
                f'export: the forward of {type(model).__name__} cannot be exported to {kind}: {one_line(error)}'
            ) from error
        worst = max(_difference(run(draft, images), plain(images)) for images in batches)
        if not worst <= tolerance:
            raise ValueError(
                f'export: the outputs of {path.name} differ from those of {type(model).__name__} by {worst:.1e} of the '
                f'largest, more than {tolerance:.0e}; the file was not kept'
            )
        os.replace(draft, path)
    return [tuple(x.shape) for x in expected], worst


def _difference(got: list[Tensor], expected: tuple[Tensor, ...]) -> float:
    if [tuple(x.shape) for x in got] != [tuple(x.shape) for x in expected]:
        return float('inf')
    pairs = zip(got, expected, strict=True)
    return max(float((x - y).abs().max() / y.abs().max().clamp(min=1e-12)) for x, y in pairs)


def _write_onnx(plain: nn.Module, example: Tensor, path: Path, shapes: dict | None) -> None:
    # A single file: separate weights are easily lost.
    options = dict(dynamo=True, external_data=False, verbose=False)
    torch.onnx.export(plain, (example,), path, input_names=['inputs'], dynamic_shapes=shapes, **options)


def _run_onnx(path: Path, images: Tensor) -> list[Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return [torch.from_numpy(np.asarray(x)) for x in session.run(None, {'inputs': images.numpy()})]


def _write_pt2(plain: nn.Module, example: Tensor, path: Path, shapes: dict | None) -> None:
    torch.export.save(torch.export.export(plain, (example,), dynamic_shapes=shapes), path)


def _run_pt2(path: Path, images: Tensor) -> list[Tensor]:
    return list(torch.export.load(path).module()(images))


_FORMATS = {'.onnx': (_write_onnx, _run_onnx), '.pt2': (_write_pt2, _run_pt2)}
