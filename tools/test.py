"""Test a checkpoint; with a distillation config, the student alone: python tools/test.py CONFIG CHECKPOINT."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == '__main__':
    try:
        from lckd_mm.cli import run_tool, test
    except ImportError as error:
        sys.exit(f'error: {error}')
    sys.exit(run_tool(test))
