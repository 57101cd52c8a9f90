"""Export of a model's forward to ONNX or torch.export; the file is kept only if its outputs match."""

import contextlib
import json
import logging
import os
import signal
import tempfile
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .. import arguments
from ..contexts import eval_mode
from ..errors import one_line

_METADATA = 'lckd_mm.json'
#: Tried in this order, until the file computes what the model does: the axes of the images that may have other lengths,
#: and what their heights and widths are multiples of.
_FREEDOMS = (
    ({0: 'batch', 2: 'height', 3: 'width'}, 1),
    ({0: 'batch', 2: 'height', 3: 'width'}, 32),
    ({0: 'batch'}, 1),
    ({}, 1),
)
#: The longest that one of these may be traced for; a ResNet takes seconds.
_FREE_SECONDS = 120.0


class PlainForward(nn.Module):
    """Maps normalised images ``(B, C, H, W)`` to a host model's tensors of ``mode='tensor'``, in the host's order.

    These are class scores of a classifier or segmentor (at the head's stride), and raw maps of a detector's head:
    without decoding, NMS and resizing.

    Args:
        channels: of the images.
    """

    def __init__(self, model: nn.Module, channels: int = 3):
        super().__init__()
        self.model, self.channels = model, channels

    def checks(self) -> list[nn.Module]:
        """Modules that are exported, too, only to be compared: none."""
        return []

    def names(self, count: int) -> list[str]:
        """Of the outputs in ONNX."""
        return ['outputs'] if count == 1 else [f'outputs_{i}' for i in range(count)]

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(_tensors(self.model(inputs, mode='tensor')))

    def images(self, batch: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Random images."""
        return torch.randn(batch, self.channels, *size, generator=generator)

    def difference(self, outputs: list[Tensor], images: Tensor) -> float:
        """The largest difference of ``outputs`` to the model's, in parts of the largest output."""
        expected = self(images)
        if [tuple(x.shape) for x in outputs] != [tuple(x.shape) for x in expected]:
            return float('inf')
        return _largest((x - y).abs().max() / y.abs().max().clamp(min=1e-12) for x, y in zip(outputs, expected))


def _largest(values: Iterable[float | Tensor]) -> float:
    """Nan if one is: Python's own ``max`` may pass over it."""
    return float(torch.tensor([float(x) for x in values]).max())


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"export: the model's plain forward gives a {type(value).__name__}, expected tensors")
    return [tensor for one in value for tensor in _tensors(one)]


class Exported(NamedTuple):
    """What :func:`export` wrote."""

    #: Of the outputs, for one image of the given size.
    shapes: list[tuple[int, ...]]
    #: The largest difference found, as the forward measures it.
    worst: float
    #: Axes of the images that may have other lengths: some of 'batch', 'height', 'width'.
    free: tuple[str, ...]
    #: Other heights and widths have to be multiples of it.
    step: int
    #: Why not all may have any length; empty if all may, or it was not tried.
    why: str


def export(
    forward: nn.Module,
    path: str | Path,
    size: tuple[int, int],
    fixed: bool = False,
    tolerance: float = 1e-4,
    metadata: Mapping[str, Any] | None = None,
) -> Exported:
    """Write ``path``, for images of any size and number if the model allows it, and compare its outputs.

    Args:
        forward: :class:`PlainForward` of a host's model on the CPU, or another module with its methods.
        path: ends in .onnx (run with onnxruntime for the comparison) or .pt2 (``torch.export``).
        size: height and width of the images. Two other sizes, and batches of 1 to 3, are compared, too, if these axes
            are free.
        fixed: one image of this size alone.
        tolerance: largest allowed difference, as ``forward.difference`` measures it.
        metadata: values of JSON for the file: ``metadata_props`` of ONNX, each value as JSON; in .pt2 the extra file
            ``lckd_mm.json``. Added are ``free``, the axes of any length, and ``multiple_of``, that of height and width.
    Raises:
        ValueError: another suffix, no forward of images alone or one that cannot be exported, or outputs that differ by
            more; no new file is left, and an existing one is unchanged. ModuleNotFoundError: the format's packages are
            missing.
    """
    path = Path(path)
    kind = arguments.choice('export', 'suffix', path.suffix, _FORMATS)
    program_of, save, run = _FORMATS[kind]
    if kind == '.onnx':
        missing = [name for name in ('onnx', 'onnxscript', 'onnxruntime') if find_spec(name) is None]
        if missing:
            raise ModuleNotFoundError(f'export: missing packages; pip install {" ".join(missing)}', name=missing[0])
    generator, name = torch.Generator().manual_seed(0), type(forward.model).__name__
    path.parent.mkdir(parents=True, exist_ok=True)
    with eval_mode(forward), tempfile.TemporaryDirectory(dir=path.parent, prefix=f'.{path.stem}-') as folder:
        modules = [forward, *forward.checks()]
        drafts = [Path(folder) / f'{i}{kind}' for i in range(len(modules))]
        try:
            expected = forward(forward.images(1, size, generator))
        except Exception as error:  # a host may raise anything
            way = (
                'give --size H W of an image that it takes'
                if isinstance(error, RuntimeError)
                else 'it has no plain forward of images alone; its checkpoint is the plain one of its host: run it '
                'there, or deploy it with mmdeploy'
            )
            raise ValueError(
                f'export: {name} fails on an image of {size[0]} x {size[1]} ({one_line(error)}): {way}'
            ) from error
        why, tried, programs = '', None, []
        for axes, step in _FREEDOMS[-1:] if fixed else _FREEDOMS:
            batches = [forward.images(n, hw, generator) for n, hw in _compared(size, axes, step)]
            try:
                if axes != tried:
                    tried, programs = axes, []
                    with warnings.catch_warnings():
                        warnings.simplefilter('ignore')
                        with _limited(_FREE_SECONDS if axes else 0):
                            programs = [program_of(module, batches[0], axes) for module in modules]
                elif not programs:
                    continue
                facts = {**(metadata or {}), 'free': [*axes.values()], 'multiple_of': step}
                for program, draft in zip(programs, drafts):
                    save(program, draft, facts)
                pairs = [*zip(modules, drafts)]
                worst = _largest(module.difference(run(file, x), x) for x in batches for module, file in pairs)
            except Exception as error:  # exporters can raise anything
                if not axes:
                    raise ValueError(
                        f'export: the forward of {name} cannot be exported to {kind}: {one_line(_first(error))}'
                    ) from error
                why = why or one_line(_first(error))
                continue
            if worst <= tolerance:
                os.replace(drafts[0], path)
                break
            if not axes:
                raise ValueError(
                    f'export: the outputs of {path.name} differ from those of {name} by {worst:.1e}, more than '
                    f'{tolerance:.0e}; the file was not kept'
                )
            why = why or f'the outputs at other sizes differ by {worst:.1e}'
    return Exported([tuple(x.shape) for x in expected], worst, tuple(axes.values()), step, why)


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise TimeoutError after so many seconds: paddings that follow from the size keep torch.export busy for hours.

    In the main thread of Linux and macOS alone, where a signal can end it; 0 stands for no limit.
    """
    if not (seconds and hasattr(signal, 'setitimer') and threading.current_thread() is threading.main_thread()):
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeoutError(f'tracing for any size took longer than {seconds:g} s')

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again, if a handler of errors has swallowed it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _first(error: BaseException) -> BaseException:
    """The error that made the exporter fail, which wraps it in advice."""
    return _first(error.__cause__) if error.__cause__ else error


def _compared(size: tuple[int, int], axes: Mapping, step: int) -> list[tuple[int, tuple[int, int]]]:
    """Numbers and sizes of the images to compare; first those to trace, since exporters treat a 1 as constant."""
    if not axes:
        return [(1, size)]
    if len(axes) == 1:
        return [(2, size), (1, size), (3, size)]
    height, width = size
    if step == 1:  # smaller and odd
        others = (height * 3 // 4 | 1, width // 2 | 1), (height // 2 | 1, width * 3 // 4 | 1)
    else:
        h, w = height // step, width // step
        others = ((h + 1) * step, (w + 2) * step), ((h + 2) * step, (w + 1) * step)
    return [(2, size), (1, others[0]), (3, others[1])]


def _onnx_program(forward: nn.Module, example: Tensor, axes: Mapping) -> Any:
    logger = logging.getLogger('torch.onnx')
    before = logger.level
    logger.setLevel(logging.ERROR)  # it warns of torchvision's operators, used or not
    try:
        shapes = {'inputs': dict(axes)} if axes else None
        names = dict(input_names=['inputs'], output_names=forward.names(len(forward(example))))
        return torch.onnx.export(forward, (example,), dynamic_shapes=shapes, dynamo=True, verbose=False, **names)
    finally:
        logger.setLevel(before)


def _save_onnx(program: Any, path: Path, metadata: Mapping) -> None:
    program.model.metadata_props.update({key: json.dumps(value) for key, value in metadata.items()})
    # A single file: separate weights are easily lost.
    program.save(path, external_data=False)


def _run_onnx(path: Path, images: Tensor) -> list[Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its errors are raised, too
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    return [torch.from_numpy(np.asarray(x)) for x in session.run(None, {'inputs': images.numpy()})]


def _pt2_program(forward: nn.Module, example: Tensor, axes: Mapping) -> Any:
    shapes = {'inputs': dict.fromkeys(axes, torch.export.Dim.DYNAMIC)} if axes else None
    return torch.export.export(forward, (example,), dynamic_shapes=shapes)


def _save_pt2(program: Any, path: Path, metadata: Mapping) -> None:
    torch.export.save(program, path, extra_files={_METADATA: json.dumps(metadata)})


def _run_pt2(path: Path, images: Tensor) -> list[Tensor]:
    return list(torch.export.load(path).module()(images))


_FORMATS = {'.onnx': (_onnx_program, _save_onnx, _run_onnx), '.pt2': (_pt2_program, _save_pt2, _run_pt2)}
