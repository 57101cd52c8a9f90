"""Reports of runs: logged metrics, costs of the nets, and pictures of predictions."""

from .page import write_report
from .runs import read_history
from .seeds import Gain, between, holm, probability, spread, table

__all__ = ['Gain', 'between', 'holm', 'probability', 'read_history', 'spread', 'table', 'write_report']
