"""FrozenTeacher: the teacher net, kept out of checkpoints, optimizers, DDP buckets and EMA copies."""

import contextlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn

from .. import arguments
from ..contexts import computes_in_bfloat16, eval_mode, preserved_rng, saved_buffers, training_branches, wrapped_forward
from ..errors import one_line
from ..hosts import (
    build_named_model,
    class_names,
    config_class_names,
    normalisation,
    read_model_config,
    samples_for_loss,
    valid_region,
)
from ..storage import checkpoint as ckpt
from ..taps import FeatureTaps, Pass, TapError
from .folding import Folding
from .judge import Judge
from .side import Feature, each, levels
from .term import Term

_BN_MODES = ('eval', 'batch')
_PRECISIONS = {'bf16': torch.bfloat16, 'fp16': torch.float16}
#: Rounding alone stays below it, also in the TF32 of GPUs' convolutions; a layer that is left out is near 1.
_FOLDED = 0.01


class FrozenTeacher:
    """Builds, loads strictly, freezes and runs a teacher. It is not a module, so that no host traverses it.

    Args:
        model: a model dict, a config file's path, or ``'mmseg::fcn/….py'``.
        checkpoint: a path or URL, such as ``'torchvision://resnet50'``.
        bn: 'eval' uses the running statistics; 'batch' uses the batch's and leaves the running ones unchanged (the
            recipe of OFD and LONDON).
        allow: regular expressions; keys that match one may be missing or unexpected in the checkpoint.
        precision: 'bf16' or 'fp16': its forward pass runs under autocast in this type, whatever the student's; terms
            stay in float32. 'fp16' needs a GPU, 'bf16' a GPU or CPU with such instructions
            (:func:`~lckd_mm.contexts.computes_in_bfloat16`). None: it runs in the precision of the student. What it
            predicts (:meth:`predict`: checks of the teacher, metrics, reports) is always in full precision.
        channels_last: it runs in torch's memory format of this name, in which convolutions are often faster; its
            features are given in the format of the images.
        fold_bn: each BatchNorm that alone reads what a convolution gives is computed by that convolution, with weights
            of its own: the model's, which margins and ``inherit`` read, stay as they are. Where a tap reads what is in
            between, the pair stays as it is. The first batch is run with and without, in float32, and compared.
    Deviation: a tap differs from the plain teacher's by at most 3e-6 of its norm with ``channels_last``, 2e-6 with
        ``fold_bn`` and 1.5e-2 with 'bf16' (FCN-R101, RetinaNet-R101, ResNet152; random weights, a CPU).
    Raises:
        ValueError: no checkpoint, a bad value, a precision that the device lacks, ``fold_bn`` with bn='batch', or a
            model that cannot be built.
        TypeError: the model is not one of mmpretrain, mmseg or mmdet.
    Example:
        teacher=dict(model='my_teacher.py', checkpoint='teacher.pth', bn='batch')
    """

    def __init__(
        self,
        model: dict | str,
        checkpoint: str | None = None,
        bn: str = 'eval',
        allow: Iterable[str] = (),
        precision: str | None = None,
        channels_last: bool = False,
        fold_bn: bool = False,
    ):
        if not isinstance(checkpoint, str) or not checkpoint:
            raise ValueError(
                f'teacher: checkpoint is {checkpoint!r}; write teacher=dict(model=…, checkpoint=PATH_OR_URL), '
                'since a teacher with random weights would teach noise'
            )
        allow = [allow] if isinstance(allow, str) else allow
        allow = arguments.sequence('teacher', 'allow', allow, 'regular expressions')
        for pattern in allow:
            try:
                re.compile(arguments.string('teacher', 'allow', pattern))
            except re.error as error:
                raise ValueError(f'teacher: allow: {pattern!r} is not a regular expression: {error}') from None
        arguments.choice('teacher', 'bn', bn, _BN_MODES)
        self.precision, self._dtype = precision, None if precision is None else _dtype_of(precision)
        self.channels_last = arguments.boolean('teacher', 'channels_last', channels_last)
        if arguments.boolean('teacher', 'fold_bn', fold_bn) and bn == 'batch':
            raise ValueError(
                "teacher: fold_bn=True folds running statistics, and bn='batch' uses those of the batch; remove one"
            )
        cfg, scope = read_model_config(model, 'teacher')
        self.scope = scope
        with preserved_rng():
            self.model = build_named_model(cfg, 'teacher', scope)
        self.has_preprocessor = cfg.get('data_preprocessor') is not None
        self.checkpoint, self.bn, self.allow = checkpoint, bn, allow
        self.loaded = False
        #: The names of its classes, in the order of its scores; None if neither checkpoint nor config tells.
        self.classes: list[str] | None = None
        self._source = model
        self._convert: tuple[Tensor, Tensor, bool] | None = None
        # A part's path to its arguments in the last call, the autocast state there, and what it gave.
        self._calls: dict[str, tuple[tuple, dict, torch.autocast, Any]] = {}
        if not (torch.cuda.is_available() and torch.distributed.is_initialized()):
            self.model = revert_sync_batchnorm(self.model)
        self.model.requires_grad_(False)
        self.model.eval()
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        self._folding = Folding(self.model) if fold_bn else None
        # The taps that were compared with and without folding.
        self._folded: set[str] = set()
        if bn == 'batch':
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    # Without tracking, torch passes the kernel no running statistics, so it uses the batch's.
                    module.train()
                    module.track_running_stats = False

    def __deepcopy__(self, memo: dict) -> 'FrozenTeacher':
        """Returns itself: EMA deep-copies the distiller, and a frozen net can be shared."""
        return self

    def load(self) -> None:
        """Load the checkpoint strictly; see :func:`lckd_mm.storage.checkpoint.load_strictly`."""
        if self.loaded:
            return
        meta = ckpt.load_strictly(self.model, self.checkpoint, 'teacher', self.allow)
        self.classes = class_names(meta) or config_class_names(self._source)
        self.loaded = True

    def match_inputs(self, student_preprocessor: nn.Module) -> None:
        """Compute, and log, how to convert the student's normalised images to the teacher's normalisation.

        Raises:
            ValueError: mean or std of either net is not as many finite numbers, a std is 0, or the nets' images differ
            in their channels.
        """
        own, other = normalisation(self._preprocessor(None)), normalisation(student_preprocessor)
        if own is None or other is None:
            return
        channels = max(len(own[0]), len(other[0]))
        own, other = (tuple(v * channels if len(v) == 1 else v for v in of[:2]) + of[2:] for of in (own, other))
        if own == other:
            return
        for who, (mean, std, _) in (('teacher', own), ('student', other)):
            if len(mean) != len(std) or not all(map(math.isfinite, mean + std)) or not all(std):
                raise ValueError(
                    f"{who}: its data_preprocessor's mean and std must be as many finite numbers, std not 0, got "
                    f'{mean} and {std}'
                )
        if len(own[0]) != len(other[0]):
            raise ValueError(
                f'teacher: its data_preprocessor normalises {len(own[0])} channels, and that of the student '
                f'{len(other[0])}: give both the same kind of images'
            )
        mean_s, std_s, mean_t, std_t = (torch.tensor(v).view(1, -1, 1, 1) for v in (*other[:2], *own[:2]))
        # The hosts flip nothing but three channels.
        flip = own[2] != other[2] and channels == 3
        if flip:
            mean_s, std_s = mean_s.flip(1), std_s.flip(1)
        # x_t = (x_s * std_s + mean_s - mean_t) / std_t, with the channels in the teacher's order.
        self._convert = std_s / std_t, (mean_s - mean_t) / std_t, flip
        print_log(
            "teacher: its images are normalised otherwise than the student's "
            f'(mean, std, flipped channels: {own} against {other}); they are converted for it',
            logger='current',
        )

    def _preprocessor(self, default: nn.Module | None) -> nn.Module | None:
        return self.model.data_preprocessor if self.has_preprocessor else default

    def convert(self, inputs: Tensor, data_samples: list | None) -> Tensor:
        """Convert the student's input batch to the teacher's normalisation and channel order; padding is unchanged."""
        if self._convert is None:
            return inputs
        scale, shift, flip = (v.to(inputs) if isinstance(v, Tensor) else v for v in self._convert)
        converted = (inputs.flip(1) if flip else inputs) * scale + shift
        valid = valid_region(inputs, data_samples)
        return converted if valid is None else torch.where(valid, converted, inputs)

    def __call__(
        self,
        taps: FeatureTaps,
        names: Iterable[str],
        inputs: Tensor,
        data_samples: list | None,
        input_gradient: bool = False,
        parts: Iterable[str] = (),
        judged: tuple[str, str] | None = None,
    ) -> dict[str, Any]:
        """The teacher's features for a batch of the student's inputs; its forward stops after the last tap.

        With ``judged``, a tap of its memory and the path of its head, it stops after this head, too, and runs the pass
        that this tap prefers last: training adds queries that are made from the ground truth.

        It runs in the pass that the taps' traces name: a plain forward; for its auxiliary heads the one with its loss,
        on copies of the samples, with the branches of training where a tap needs them. Its statistics do not change.
        Taps that no single pass reads take a forward each.

        The calls of the modules at the paths ``parts`` are noted for :meth:`reuse`, :meth:`score` and :meth:`judge`,
        until :meth:`forget`.

        With ``input_gradient`` the features can be differentiated with respect to the inputs; the parameters never get
        a gradient. Random numbers that the teacher draws (some heads draw, even in eval mode) do not affect the
        student's.

        Raises:
            RuntimeError: its forward pass overwrites the images, which the student reads next.
            ValueError: its forward pass fails before the last tap, as with images of a size that it does not take.
        """
        version, kind = None if inputs.is_inference() else inputs._version, inputs.device.type
        converted, names = self.convert(inputs, data_samples), list(names)
        if self.channels_last:
            converted = converted.contiguous(memory_format=torch.channels_last)

        def run(names: Iterable[str] = names) -> dict[str, Any]:
            features, passes = {}, taps.passes(names)
            last = taps.traces[judged[0]].passes[0] if judged else None
            if judged:
                passes[last] = passes.pop(last, [name for name in names if last in taps.traces[name].passes])
            for one, of in passes.items():
                until = judged[1] if one == last else None
                with (
                    preserved_rng(device=inputs.device),
                    torch.set_grad_enabled(input_gradient),
                    self._noted(parts, kind),
                ):
                    features |= self._features(taps, of, one, converted, data_samples, until)
            return features

        if self._folding is not None and set(names) - self._folded and version is not None:
            with torch.autocast(kind, enabled=False):
                # With the taps of earlier calls: what is behind them may read what is between the layers of a pair.
                self._fold(partial(run, sorted(self._folded | set(names))))
        with contextlib.nullcontext() if self._dtype is None else torch.autocast(kind, self._dtype):
            features = run()
        if self.channels_last and not inputs.is_contiguous(memory_format=torch.channels_last):
            # Terms compare them with the student's, which is slow in two formats.
            features = {name: each(Tensor.contiguous, feature) for name, feature in features.items()}
        if version is not None and inputs._version != version:
            raise RuntimeError(
                f'teacher: {type(self.model).__name__} overwrites the batch of images in its forward pass, which the '
                "student sees after it; take the in-place operation out of the teacher's first layers (inplace=False)"
            )
        return features

    def _fold(self, run: Callable[[], dict[str, Any]]) -> None:
        """Fold what runs in a forward pass, and compare the taps before and after."""
        plain = self._folding.fold(run)
        gaps = {name: _gap(of, plain[name]) for name, of in run().items()}
        worst = max(gaps, key=gaps.get)
        if gaps[worst] > _FOLDED:
            self._folding.undo()
            raise ValueError(
                f'teacher: with fold_bn=True the tap {worst!r} differs from the plain one by {gaps[worst]:.1e} of its '
                'norm, so a layer reads what a convolution gives before its BatchNorm does; remove fold_bn'
            )
        self._folded |= gaps.keys()
        print_log(
            f'teacher: BatchNorms folded into convolutions: {len(self._folding.layers)}; the taps differ from the '
            f'plain ones by at most {gaps[worst]:.1e} of their norm',
            logger='current',
        )

    def move(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply a function to its tensors, as ``nn.Module._apply``."""
        self.model._apply(function)
        if self._folding is not None:
            self._folding.layers._apply(function)

    @contextlib.contextmanager
    def _noted(self, parts: Iterable[str], device: str) -> Iterator[None]:
        """Note with what these parts are called; at ``forward``, since hosts call that of a head directly."""
        autocast = dict(enabled=torch.is_autocast_enabled(device), dtype=torch.get_autocast_dtype(device))

        def note(path: str, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            state = torch.autocast(device, **autocast)
            self._calls[path] = args, kwargs, state, None
            result = own(*args, **kwargs)  # not reached where the pass stops inside
            self._calls[path] = args, kwargs, state, result
            return result

        with contextlib.ExitStack() as stack:
            for path in parts:
                stack.enter_context(wrapped_forward(self.model.get_submodule(path), partial(note, path)))
            yield

    def reuse(self, taps: FeatureTaps, part: str, values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
        """Run a part of the teacher again on the last batch, with other features at some of its taps.

        Args:
            part: its path, one of ``parts`` of the last call. values: tap name to the feature put in its place.
        Returns:
            The features of the taps ``names``, with gradient to ``values``; the parameters get none.
        Raises:
            ValueError: the teacher did not call the part, or the part fails on these features.
        """
        if part not in self._calls:
            raise ValueError(f'teacher: {type(self.model).__name__} does not call its {part!r}, so reuse cannot run it')
        args, kwargs, autocast, _ = self._calls[part]
        device = next(self.model.parameters()).device
        with preserved_rng(device=device), autocast, contextlib.ExitStack() as stack:
            for name, value in values.items():
                stack.enter_context(taps.substitute(self.model, name, value))
            with taps.record(self.model, names, stop=True) as features:
                self.model.get_submodule(part)(*args, **kwargs)
        return features

    def score(
        self, taps: FeatureTaps, regions: Mapping[str, Tensor], term: Term, names: Iterable[str]
    ) -> dict[str, Any]:
        """What the head of a term makes of the student's regions, on its own pyramid of the last batch.

        Args:
            regions: by the path of the student's module that was called with them. names: the taps to read.
        """
        (pyramid, *_), _, autocast, _ = self._calls[term.their_regions.extractor]
        device = next(self.model.parameters()).device
        with (
            preserved_rng(device=device), torch.no_grad(), autocast,
            taps.record(self.model, names, stop=True) as found,
        ):  # fmt: skip
            term.their_regions.run(self.model, pyramid, regions[term.regions.extractor])
        return found

    def judge(self, judge: Judge, memory: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """What decoder and head make of another memory, with gradient to it, and of the teacher's own."""
        with preserved_rng(device=memory[0].device):
            return judge.judge(self.model, self._calls, memory), judge.own(self.model, self._calls)

    def forget(self) -> None:
        """Free what :meth:`reuse`, :meth:`score` and :meth:`judge` need of the last batch."""
        self._calls.clear()

    def _features(
        self,
        taps: FeatureTaps,
        names: list[str],
        one: Pass,
        inputs: Tensor,
        data_samples: list | None,
        until: str | None,
    ) -> dict[str, Any]:
        restore = None
        if one.mode != 'tensor':
            data_samples, restore = samples_for_loss(self.model, data_samples), saved_buffers(self.model)
        try:
            with (
                training_branches(self.model, one.training),
                taps.record(self.model, names, stop=True, until=until) as features,
            ):
                self.model(inputs, data_samples, mode=one.mode)
        except (TapError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a host may raise anything on an image that does not fit
            own = [key for key in ('channels_last', 'precision') if getattr(self, key)]
            size, mode = ' x '.join(map(str, inputs.shape[2:])), '' if one == Pass() else f' (mode={one.mode!r})'
            raise ValueError(
                f"teacher: {type(self.model).__name__} fails on the student's images{mode}, of {size} with "
                f'{inputs.shape[1]} channels: {one_line(error)}; train the student on images that both take'
                + (f", or remove the teacher's {' and '.join(own)}" if own else '')
            ) from error
        finally:
            if restore is not None:
                restore()
        return features

    def predict(self, data: dict, student_preprocessor: nn.Module) -> list:
        """Predictions for a batch from a validation loader, by the running statistics whatever ``bn`` is."""
        preprocessor = self._preprocessor(student_preprocessor)
        preprocessor.to(next(self.model.parameters()).device)
        # In eval mode torch uses the running statistics, even with bn='batch'.
        with eval_mode(self.model):
            data = preprocessor(data, False)
            return self.model(**data, mode='predict')


def _dtype_of(precision: str) -> torch.dtype:
    """The type of an autocast; ValueError if the device of the training does not compute in it."""
    arguments.choice('teacher', 'precision', precision, _PRECISIONS)
    device = get_device()
    if precision == 'fp16' and device == 'cpu':
        raise ValueError("teacher: precision='fp16' needs a GPU, and there is none; write precision='bf16'")
    if precision == 'bf16' and not computes_in_bfloat16(device):
        raise ValueError(
            f"teacher: precision='bf16' needs instructions for bfloat16, and this {device.upper()} has none; remove "
            'precision'
        )
    return _PRECISIONS[precision]


def _gap(feature: Feature, other: Feature) -> float:
    """The norm of the difference, relative to that of the other; the largest of the levels."""
    pairs = zip(levels(feature), levels(other), strict=True)
    return max(float((x - y).norm() / y.norm().clamp(min=1e-30)) for x, y in pairs)
