"""What the tools run: training, tests, and what comes before them."""

from .commands import add_hooks, build_runner, fit, option_path, parser, read_config, run_tool, test, train

__all__ = ['add_hooks', 'build_runner', 'fit', 'option_path', 'parser', 'read_config', 'run_tool', 'test', 'train']
