"""Reports of runs: logged metrics, costs of the nets, and pictures of predictions."""

from .comparison import Comparer, Comparison
from .costs import figures, weight_bytes
from .page import write_report
from .runs import Group, Run, bootstrap, find_runs, group_runs, read_history, spread
from .scores import box_f1, image_iou

__all__ = [
    'Comparer',
    'Comparison',
    'Group',
    'Run',
    'bootstrap',
    'box_f1',
    'figures',
    'find_runs',
    'group_runs',
    'image_iou',
    'read_history',
    'spread',
    'weight_bytes',
    'write_report',
]
