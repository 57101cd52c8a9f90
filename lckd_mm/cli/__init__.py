"""The functions behind the tools: training, testing, predicting, exporting, and their preparation."""

from .commands import add_hooks, build_runner, fit, option_path, parser, read_config, run_tool, test, train
from .export import export
from .options import Options
from .predict import predict

__all__ = [
    'Options',
    'add_hooks',
    'build_runner',
    'export',
    'fit',
    'option_path',
    'parser',
    'predict',
    'read_config',
    'run_tool',
    'test',
    'train',
]
