"""Train a model, or distil one if the config says so: python tools/train.py CONFIG [--resume] [--amp] …."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == '__main__':
    try:
        from lckd_mm.cli import run_tool, train
    except ImportError as error:
        sys.exit(f'error: {error}')
    sys.exit(run_tool(train))
