"""mmengine hooks: checkpoints and resume, schedules, monitors, pruning, pictures, non-finite values, memory."""

from .activation_checkpoint import ActivationCheckpointHook
from .distillation import DistillationHook, show_batch
from .gradient_weight import GradientWeightHook
from .monitors import GradientShareHook, LipschitzMonitorHook, TeacherCheckHook, TeacherReferenceHook
from .non_finite import NonFiniteHook
from .online import OnlineHook
from .pictures import PredictionHook
from .pruning import PruningHook
from .rescaling import GradientRescaleHook
from .resume import ResumeHook, SafeCheckpointHook
from .schedules import ConnectorWarmupHook, LossWeightHook, epoch_length
from .unlabelled import UnlabelledHook

__all__ = [
    'ActivationCheckpointHook',
    'ConnectorWarmupHook',
    'DistillationHook',
    'GradientRescaleHook',
    'GradientShareHook',
    'GradientWeightHook',
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
    'UnlabelledHook',
    'epoch_length',
    'show_batch',
]
