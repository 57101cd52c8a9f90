"""Fit a distillation's auto-encoders and margins once, for later runs: python tools/fit_connectors.py CONFIG OUT …."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == '__main__':
    try:
        from lckd_mm.cli import fit, run_tool
    except ImportError as error:
        sys.exit(f'error: {error}')
    sys.exit(run_tool(fit))
