"""mmengine hooks: storing connectors and random states, weight schedules, monitors, the teacher's check, pictures."""

from .distillation import DistillationHook, distiller_of
from .monitors import LipschitzMonitorHook, TeacherCheckHook
from .pictures import PredictionHook, draw, overlay_labels, side_by_side
from .resume import ResumeHook, SafeCheckpointHook, random_state, set_random_state
from .schedules import ConnectorWarmupHook, LossWeightHook, epoch_length

__all__ = [
    'ConnectorWarmupHook',
    'DistillationHook',
    'LipschitzMonitorHook',
    'LossWeightHook',
    'PredictionHook',
    'ResumeHook',
    'SafeCheckpointHook',
    'TeacherCheckHook',
    'distiller_of',
    'draw',
    'epoch_length',
    'overlay_labels',
    'random_state',
    'set_random_state',
    'side_by_side',
]
