"""FrozenTeacher: the teacher net, kept out of checkpoints, optimizers, DDP buckets and EMA copies."""

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn

from .. import arguments
from ..contexts import eval_mode, preserved_rng
from ..hosts import build_named_model, normalisation, read_model_config, valid_region
from ..storage import checkpoint as ckpt
from ..taps import FeatureTaps

_BN_MODES = ('eval', 'batch')


class FrozenTeacher:
    """Builds, loads strictly, freezes and runs a teacher. It is not a module, so that no host traverses it.

    Args:
        model: a model dict, a config file's path, or ``'mmseg::fcn/….py'``.
        checkpoint: a path or URL, such as ``'torchvision://resnet50'``.
        bn: 'eval' uses the running statistics; 'batch' uses the batch's and leaves the running ones unchanged (the
            recipe of OFD and LONDON).
        allow: regular expressions; keys that match one may be missing or unexpected in the checkpoint.
    Raises:
        ValueError: no checkpoint, a bad ``bn`` or ``allow``, or a model that cannot be built.
        TypeError: the model is not one of mmpretrain, mmseg or mmdet.
    """

    def __init__(self, model: dict | str, checkpoint: str | None = None, bn: str = 'eval', allow: Iterable[str] = ()):
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
        cfg, scope = read_model_config(model, 'teacher')
        self.scope = scope
        with preserved_rng():
            self.model = build_named_model(cfg, 'teacher', scope)
        self.has_preprocessor = cfg.get('data_preprocessor') is not None
        self.checkpoint, self.bn, self.allow = checkpoint, bn, allow
        self.loaded = False
        self._convert: tuple[Tensor, Tensor, bool] | None = None
        if not (torch.cuda.is_available() and torch.distributed.is_initialized()):
            self.model = revert_sync_batchnorm(self.model)
        self.model.requires_grad_(False)
        self.model.eval()
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
        ckpt.load_strictly(self.model, self.checkpoint, 'teacher', self.allow)
        self.loaded = True

    def match_inputs(self, student_preprocessor: nn.Module) -> None:
        """Compute, and log, how to convert the student's normalised images to the teacher's normalisation.

        Raises:
            ValueError: mean or std of either net is not three finite numbers, or a std is 0.
        """
        own, other = normalisation(self._preprocessor(None)), normalisation(student_preprocessor)
        if own is None or other is None or own == other:
            return
        for who, (mean, std, _) in (('teacher', own), ('student', other)):
            if not len(mean) == len(std) == 3 or not all(map(math.isfinite, mean + std)) or not all(std):
                raise ValueError(
                    f"{who}: its data_preprocessor's mean and std must be three finite numbers each, std not 0, got "
                    f'{mean} and {std}'
                )
        mean_s, std_s, mean_t, std_t = (torch.tensor(v).view(1, -1, 1, 1) for v in (*other[:2], *own[:2]))
        flip = own[2] != other[2]
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
    ) -> dict[str, Any]:
        """The teacher's features for a batch of the student's inputs; its forward stops after the last tap.

        With ``input_gradient`` the features can be differentiated with respect to the inputs; the parameters never get
        a gradient. Random numbers that the teacher draws (some heads draw, even in eval mode) do not affect the
        student's.

        Raises:
            RuntimeError: its forward pass overwrites the images, which the student reads next.
        """
        version = None if inputs.is_inference() else inputs._version
        apart = preserved_rng(device=inputs.device)
        with apart, torch.set_grad_enabled(input_gradient), taps.record(self.model, names, stop=True) as features:
            self.model(self.convert(inputs, data_samples), data_samples, mode='tensor')
        if version is not None and inputs._version != version:
            raise RuntimeError(
                f'teacher: {type(self.model).__name__} overwrites the batch of images in its forward pass, which the '
                "student sees after it; take the in-place operation out of the teacher's first layers (inplace=False)"
            )
        return features

    def predict(self, data: dict, student_preprocessor: nn.Module) -> list:
        """Predictions for a batch from a validation loader, by the running statistics whatever ``bn`` is."""
        preprocessor = self._preprocessor(student_preprocessor)
        preprocessor.to(next(self.model.parameters()).device)
        # In eval mode torch uses the running statistics, even with bn='batch'.
        with eval_mode(self.model):
            data = preprocessor(data, False)
            return self.model(**data, mode='predict')
