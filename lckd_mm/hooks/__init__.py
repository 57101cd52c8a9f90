"""mmengine hooks: checkpoints and resume, schedules, monitors, pruning, pictures, non-finite values, memory."""

from .activation_checkpoint import ActivationCheckpointHook
from .distillation import DistillationHook, distiller_of, show_batch, terms_of
from .monitors import LipschitzMonitorHook, TeacherCheckHook, TeacherReferenceHook
from .non_finite import NonFiniteHook
from .online import OnlineHook
from .pictures import PredictionHook
from .pruning import PruningHook
from .rescaling import GradientRescaleHook
from .resume import ResumeHook, SafeCheckpointHook, random_state, set_random_state
from .schedules import ConnectorWarmupHook, LossWeightHook, epoch_length

__all__ = [
    'ActivationCheckpointHook',
    'ConnectorWarmupHook',
    'DistillationHook',
    'GradientRescaleHook',
    'LipschitzMonitorHook',
    'LossWeightHook',
    'NonFiniteHook',
    'OnlineHook',
    'PredictionHook',
    'PruningHook',
    'ResumeHook',
    'SafeCheckpointHook',
    'TeacherCheckHook',
    'TeacherReferenceHook',
    'distiller_of',
    'epoch_length',
    'random_state',
    'set_random_state',
    'show_batch',
    'terms_of',
]
