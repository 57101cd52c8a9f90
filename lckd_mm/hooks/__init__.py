"""mmengine hooks: storing connectors, weight schedules, the Lipschitz monitor, the teacher's check, pictures."""

from .distillation import DistillationHook, distiller_of
from .monitors import LipschitzMonitorHook, TeacherCheckHook
from .pictures import PredictionHook, draw, overlay_labels, side_by_side
from .schedules import ConnectorWarmupHook, LossWeightHook, epoch_length

__all__ = [
    'ConnectorWarmupHook',
    'DistillationHook',
    'LipschitzMonitorHook',
    'LossWeightHook',
    'PredictionHook',
    'TeacherCheckHook',
    'distiller_of',
    'draw',
    'epoch_length',
    'overlay_labels',
    'side_by_side',
]
