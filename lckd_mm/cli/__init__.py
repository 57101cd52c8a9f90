"""The functions behind the tools: training, testing, and their preparation."""

from .commands import add_hooks, build_runner, fit, option_path, parser, read_config, run_tool, test, train

__all__ = ['add_hooks', 'build_runner', 'fit', 'option_path', 'parser', 'read_config', 'run_tool', 'test', 'train']
