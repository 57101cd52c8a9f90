"""Export a student to ONNX or torch.export: python tools/export.py CONFIG CHECKPOINT student.onnx [--end-to-end]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == '__main__':
    try:
        from lckd_mm.cli import export, run_tool
    except ImportError as error:
        sys.exit(f'error: {error}')
    sys.exit(run_tool(export))
