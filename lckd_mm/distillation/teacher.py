"""FrozenTeacher: the teacher net, kept out of checkpoints, optimizers, DDP buckets and EMA copies."""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    AS_BUILT,
    as_built,
    build_module,
    build_named_model,
    class_names,
    config_class_names,
    forward,
    host_of,
    normalisation,
    read_model_config,
    samples_for_loss,
)
from ..storage import checkpoint as ckpt
from ..storage.files import near
from ..taps import FeatureTaps, Pass, TapError
from ..taps.axes import arranged
from ..taps.places import places_of, put
from .folding import Folding
from .images import TeacherImages, stated
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
        checkpoint: a path or URL, such as ``'torchvision://resnet50'``; for a ``module`` whose function loads weights
            itself, ``'as built'``.
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
        module: in place of ``model``, a class or function that makes any torch module, or its import path, such as
            ``'timm.create_model'``; it is called with the images alone. ``args``: its keyword arguments.
        mean, std: of a ``module``: how its images are normalised, RGB, in the units 0 to 255.
        flip: whether RGB is the loaded images flipped; needed where the student's preprocessor flips no channels.
        size: its images are resized to this height and width (or one number for both), bilinearly with antialiasing.
        scale: factor on the height and width of the student's images. A detector's images keep their size.
        patch: the side of a vision transformer's patches: height and width are rounded to a multiple of it.
        prefix: the number of tokens before those of the image: 1 for a class token, 5 with four registers. Taps that
            give tokens (B, prefix + h w, C) then give maps (B, C, h, w).
    Deviation: a tap differs from the plain teacher's by at most 3e-6 of its norm with ``channels_last``, 2e-6 with
        ``fold_bn`` and 1.5e-2 with 'bf16' (FCN-R101, RetinaNet-R101, ResNet152; random weights, a CPU).
    Raises:
        ValueError: no checkpoint, a bad value, a precision that the device lacks, ``fold_bn`` with bn='batch', or a
            model that cannot be built.
        TypeError: the model is not one of mmpretrain, mmseg or mmdet, or the module no torch module.
    Example:
        teacher=dict(model='my_teacher.py', checkpoint='teacher.pth', bn='batch')
        teacher=dict(
            module='timm.create_model',
            args=dict(model_name='vit_small_patch14_dinov2', dynamic_img_size=True, num_classes=0),
            checkpoint='model.safetensors',
            mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
            scale=0.5, patch=14, prefix=1,
        )
    """

    def __init__(
        self,
        model: dict | str | None = None,
        checkpoint: str | None = None,
        bn: str = 'eval',
        allow: Iterable[str] = (),
        precision: str | None = None,
        channels_last: bool = False,
        fold_bn: bool = False,
        module: str | Callable | None = None,
        args: dict | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        flip: bool | None = None,
        size: int | Sequence[int] | None = None,
        scale: float = 1.0,
        patch: int | None = None,
        prefix: int | None = None,
    ):
        key = 'model' if module is None else 'module'
        if (model is None) is (module is None):
            raise KeyError(
                'teacher: write either model= for a net of mmpretrain, mmseg or mmdet, or module= for a torch module'
            )
        if module is not None and as_built(checkpoint):
            checkpoint = AS_BUILT
        if not isinstance(checkpoint, str) or not checkpoint:
            built = f" (or checkpoint='{AS_BUILT}' for a function that loads weights itself)" if module else ''
            raise ValueError(
                f'teacher: checkpoint is {checkpoint!r}; write teacher=dict({key}=…, checkpoint=PATH_OR_URL), '
                f'since a teacher with random weights would teach noise{built}'
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
        #: The student's images as the teacher takes them.
        self.images = TeacherImages(size, scale, patch, prefix)
        with preserved_rng():
            self.model, self.scope, self.has_preprocessor = teacher_net(model, module, args)
        self._stated = None if module is None else stated(mean, std)
        self.flip = None if flip is None else arguments.boolean('teacher', 'flip', flip)
        self._check_options(dict(args=args, mean=mean, std=std, flip=flip) if module is None else {})
        self.checkpoint, self.bn, self.allow = checkpoint, bn, allow
        self.loaded = False
        #: The names of its classes, in the order of its scores; None if neither checkpoint nor config tells.
        self.classes: list[str] | None = None
        self._source = model
        # A part's path to its arguments in the last call, the autocast state there, and what it gave.
        self._calls: dict[str, tuple[tuple, dict, torch.autocast, Any]] = {}
        # A part's path and a tap to where the tap's tensors are in its arguments; empty if it computes them.
        self._inputs: dict[tuple[str, str], list[tuple[int, ...]]] = {}
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
        if self.checkpoint == AS_BUILT and not isinstance(self._source, (str, dict)):
            self.loaded = True
            return
        meta = ckpt.load_strictly(self.model, self.checkpoint, 'teacher', self.allow)
        self.classes = class_names(meta) or (self._source and config_class_names(self._source))
        self.loaded = True

    def match_inputs(self, student_preprocessor: nn.Module) -> None:
        """Compute, and log, how to convert the student's normalised images to the teacher's normalisation.

        Raises:
            ValueError: mean or std of either net is not as many finite numbers, a std is 0, or the nets' images differ
            in their channels; the teacher is a torch module, and the student's preprocessor does not tell its own.
        """
        own, other = self._stated or normalisation(self._preprocessor(None)), normalisation(student_preprocessor)
        if self._stated is not None and other is None:
            raise ValueError(
                f'student: its {type(student_preprocessor).__name__} does not tell how it normalises images, and a '
                "torch module as teacher has mean and std of its own; give the student its host's data_preprocessor"
            )
        if self._stated is not None and self.flip is not None:
            own = (*own[:2], self.flip)
        elif self._stated is not None and not other[2] and len(other[0]) == 3:
            raise ValueError(
                'teacher: a torch module takes RGB, and it is not known whether the images of the student, whose '
                'data_preprocessor leaves their channels as they are, are RGB; write flip=True in the teacher where '
                'they are BGR, as they are loaded from files, else flip=False'
            )
        if own is not None and other is not None:
            self.images.match(own, other)

    def _preprocessor(self, default: nn.Module | None) -> nn.Module | None:
        return self.model.data_preprocessor if self.has_preprocessor else default

    def convert(self, inputs: Tensor, data_samples: list | None) -> Tensor:
        """The student's input batch in the teacher's normalisation and order of channels, at its size."""
        return self.images(inputs, data_samples)

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
        features = self.images.maps(features, converted.shape[2:])
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

    def check_predicts(self, who: str) -> None:
        """Raise ValueError for a torch module, whose outputs are no predictions of a host; ``who`` asks for them."""
        if self._stated is not None:
            raise ValueError(
                f'{who}: the teacher, {type(self.model).__name__}, is a torch module of no host, so it makes no '
                'predictions that could be scored or drawn'
            )

    def settle(self, taps: FeatureTaps, size: tuple[int, int]) -> None:
        """Note what the traced taps give as maps; ``size``: height and width of the image that they were traced on.

        Raises:
            ValueError: ``prefix`` is not the number of tokens before those of the image; a tap fires only where the
            data samples are read, and the images are resized.
        """
        for name, trace in taps.traces.items():
            if self.images.resizes and Pass() not in trace.passes:
                raise ValueError(
                    f"teacher tap {name!r}: it is read with the loss, whose labels have the size of the student's "
                    'images; tap a layer that runs in a plain forward, or remove size, scale and patch from the teacher'
                )
            trace.shapes = [self.images.grid(name, shape, size) for shape in trace.shapes]

    def _check_options(self, unused: Mapping[str, Any]) -> None:
        """Refuse what has no effect, and a size of its own for a detector."""
        for name, value in unused.items():
            if value is not None:
                raise ValueError(f'teacher: {name} belongs to module=…; a model= has its own; remove it')
        if self.images.resizes and host_of(self.model) == 'mmdet':
            raise ValueError(
                f'teacher: {type(self.model).__name__} sees boxes in pixels of the images, so they keep the size that '
                'the student sees; remove size, scale and patch'
            )

    @property
    def origin(self) -> str:
        """Where its weights come from, for the log."""
        return near(self.checkpoint)

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
            part: its path, one of ``parts`` of the last call. values: tap name to the feature put in its place. If it
                is one of the part's own arguments, such as a stage that a decode head reads, it is replaced there:
                all of the part reads it, also what no module does, such as a concatenation.
        Returns:
            The features of the taps ``names``, with gradient to ``values``; the parameters get none.
        Raises:
            ValueError: the teacher did not call the part, or the part fails on these features.
        """
        if part not in self._calls:
            raise ValueError(f'teacher: {type(self.model).__name__} does not call its {part!r}, so reuse cannot run it')
        args, kwargs, autocast, _ = self._calls[part]
        run = self.model.get_submodule(part)
        device = next(self.model.parameters()).device
        with preserved_rng(device=device), autocast, contextlib.ExitStack() as stack:
            if any((part, name) not in self._inputs for name in values):
                with torch.no_grad(), taps.record(self.model, values, stop=True) as own:
                    run(*args, **kwargs)
                for name, feature in own.items():
                    order = taps.traces[name].order
                    self._inputs[part, name] = places_of([arranged(x, order, True) for x in levels(feature)], args)
            for name, value in values.items():
                if places := self._inputs[part, name]:
                    order = taps.traces[name].order
                    for place, x in zip(places, levels(value), strict=True):
                        args = put(args, place, arranged(x, order, True))
                else:
                    stack.enter_context(taps.substitute(self.model, name, value))
            with taps.record(self.model, names, stop=True) as features:
                run(*args, **kwargs)
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
            data_samples, restore = samples_for_loss(self.model, data_samples, inputs), saved_buffers(self.model)
        try:
            with (
                training_branches(self.model, one.training),
                taps.record(self.model, names, stop=True, until=until) as features,
            ):
                forward(self.model, inputs, data_samples, one.mode)
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
        self.check_predicts('predict')
        preprocessor = self._preprocessor(student_preprocessor)
        preprocessor.to(next(self.model.parameters()).device)
        # In eval mode torch uses the running statistics, even with bn='batch'.
        with eval_mode(self.model):
            data = preprocessor(data, False)
            return self.model(**data, mode='predict')


def teacher_net(
    model: dict | str | None = None, module: str | Callable | None = None, args: dict | None = None, **_: Any
) -> tuple[nn.Module, str | None, bool]:
    """The net of a teacher's config, without its weights; its default scope; whether it has a data_preprocessor."""
    if isinstance(model, nn.Module):
        return model, None, False
    if module is not None:
        # Some libraries keep the precision of the file.
        return build_module(module, args, 'teacher').float(), None, False
    cfg, scope = read_model_config(model, 'teacher')
    return build_named_model(cfg, 'teacher', scope), scope, cfg.get('data_preprocessor') is not None


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
