"""Reports of runs: logged metrics, costs of the nets, and pictures of predictions."""

from .comparison import Comparer, Comparison
from .costs import figures, weight_bytes
from .page import write_report
from .runs import Group, Run, find_runs, group_runs, read_history
from .scores import box_f1, image_iou
from .seeds import Gain, between, bootstrap, spread, table

__all__ = [
    'Comparer',
    'Comparison',
    'Gain',
    'Group',
    'Run',
    'between',
    'bootstrap',
    'box_f1',
    'figures',
    'find_runs',
    'group_runs',
    'image_iou',
    'read_history',
    'spread',
    'table',
    'weight_bytes',
    'write_report',
]
