"""StudentModel: wraps a host's model and behaves as that model to all outside code."""

from collections.abc import Callable
from typing import Any

from mmengine.model import BaseModel
from torch import Tensor, nn

from ..storage.checkpoint import export_keys, import_keys

#: Offset of the seed of connectors and other modules of terms, apart from the student's random numbers.
TERM_SEED = 0x1C4D


def stored(module: nn.Module) -> dict[str, Tensor]:
    """The state dict on the CPU, as it is stored."""
    return {key: value.detach().cpu() for key, value in module.state_dict().items()}


class StudentModel(BaseModel):
    """Base class of the distillers, which train a host's model, ``self.student``, together with other modules.

    Derived classes define ``loss(inputs, data_samples)``; all else is the student's, as
    :class:`~lckd_mm.distillation.Distiller` describes it.
    """

    def __init__(self, student: BaseModel, init_cfg: dict | None = None):
        super().__init__(data_preprocessor=student.data_preprocessor, init_cfg=init_cfg)
        # The property returns the student's preprocessor; registered here too, it would be in the state dict twice.
        del self._modules['data_preprocessor']
        self.student = student
        #: True while a hook stores in checkpoints what ``state_dict`` leaves out.
        self.state_is_stored = False
        self._register_state_dict_hook(export_keys)
        self.register_load_state_dict_pre_hook(import_keys)

    def forward(self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor'):
        """``mode='loss'`` trains; any other mode is the student's own forward."""
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        return self.student(inputs, data_samples, mode=mode)

    @property
    def data_preprocessor(self) -> nn.Module:
        return self.student.data_preprocessor

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ('student', 'terms', 'peers') or 'student' not in self.__dict__.get('_modules', {}):
                raise
            return getattr(self.student, name)

    @property
    def get_layer_depth(self) -> Callable[..., tuple[int, int]]:
        """The student's, for mmpretrain's layer-decay constructor, which passes names that start with ``student.``."""
        depth = self.student.get_layer_depth
        return lambda name, *prefix: depth(name.removeprefix('student.'), *prefix)

    def named_parameters(self, prefix: str = '', recurse: bool = True, remove_duplicate: bool = True):
        """As torch's, with the student's parameters under their own names, which layer-decay constructors read."""
        inner = f'{prefix}.student.' if prefix else 'student.'
        outer = f'{prefix}.' if prefix else ''
        for name, parameter in super().named_parameters(prefix, recurse, remove_duplicate):
            yield (outer + name[len(inner) :] if name.startswith(inner) else name), parameter

    def parse_losses(self, losses: dict) -> tuple[Tensor, dict[str, Tensor]]:
        return self.student.parse_losses(losses)

    def val_step(self, data: Any) -> list:
        return self.student.val_step(data)

    def test_step(self, data: Any) -> list:
        return self.student.test_step(data)
