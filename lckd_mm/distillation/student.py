"""StudentModel: a model that wraps a host's and is, to all that look at it from outside, that one."""

from collections.abc import Callable
from typing import Any

from mmengine.model import BaseModel
from torch import Tensor, nn

from ..storage.checkpoint import export_keys, import_keys


class StudentModel(BaseModel):
    """Base of what trains a host's model, ``self.student``, with more around it.

    Validation, test and export are the student's; ``state_dict`` holds its own keys without prefix and nothing else,
    so that what else is trained is stored elsewhere; unknown attributes are the student's, for the hosts' hooks and
    optimizer constructors.
    """

    def __init__(self, student: BaseModel, init_cfg: dict | None = None):
        super().__init__(data_preprocessor=student.data_preprocessor, init_cfg=init_cfg)
        # The preprocessor is the student's, see the property; registered twice it would be in the state twice.
        del self._modules['data_preprocessor']
        self.student = student
        self._register_state_dict_hook(export_keys)
        self.register_load_state_dict_pre_hook(import_keys)

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
        """The student's, for mmpretrain's layer-decay constructor, which walks modules and names what it finds."""
        depth = self.student.get_layer_depth
        return lambda name, *prefix: depth(name.removeprefix('student.'), *prefix)

    def named_parameters(self, prefix: str = '', recurse: bool = True, remove_duplicate: bool = True):
        """As torch's, with the student's parameters under their own names: layer-decay constructors read them."""
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
