"""AveragedTeacher: the student's own average as its teacher."""

import copy
from collections.abc import Iterable
from typing import Any

from mmengine.hooks import EMAHook
from torch import nn

from ..hosts import AS_BUILT
from .teacher import FrozenTeacher


class AveragedTeacher(FrozenTeacher):
    """The moving average of the student's weights, which mmengine's EMAHook keeps: a mean teacher.

    Args:
        net: the student.
    """

    def __init__(self, net: nn.Module):
        super().__init__(copy.deepcopy(net), AS_BUILT)

    @property
    def origin(self) -> str:
        return 'the average of the student'

    def follow(self, hooks: Iterable[Any], student: nn.Module) -> None:
        """Take the average that a run's hook keeps, and restores on resume; at first it is the student.

        Raises:
            ValueError: the run has no EMAHook.
        """
        average = next((hook.ema_model for hook in hooks if isinstance(hook, EMAHook)), None)
        if average is None:
            raise ValueError(
                'teacher: average=True is the average that an EMAHook keeps; add '
                "custom_hooks=[dict(type='EMAHook', momentum=0.001)]"
            )
        self.model = average.module.student.eval()
        if int(average.steps) == 0:  # copied before the student's weights were initialised
            self.model.load_state_dict(student.state_dict())
