"""Predict single images, and draw what was found: python tools/predict.py CONFIG CHECKPOINT IMAGE … --out DIR."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == '__main__':
    try:
        from lckd_mm.cli import predict, run_tool
    except ImportError as error:
        sys.exit(f'error: {error}')
    sys.exit(run_tool(predict))
