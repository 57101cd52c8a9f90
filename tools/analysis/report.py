"""One HTML page about runs: curves, a table, and pictures of what distillation changed.

    python tools/analysis/report.py WORK_DIR [WORK_DIR …] [--out report.html]

A WORK_DIR is a folder written by tools/train.py, or a parent of such folders. Runs whose configs differ only in the
seed (and the teacher's checkpoint) are grouped. The page works offline; its charts are also saved as PNGs next to it.
"""

import argparse
import functools
import logging
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main(argv: list[str]) -> None:
    import torch

    from lckd_mm.reporting import write_report

    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('work_dirs', nargs='+', metavar='WORK_DIR')
    p.add_argument('--out', help='the HTML file (default: report.html in the first WORK_DIR)')
    p.add_argument('--methods', nargs='+', metavar='TITLE', help='draw pictures of these (default: the three best)')
    p.add_argument('--images', type=int, metavar='N', help='images to compare, evenly spaced over the validation set '
                   '(default: 200, or 1000 of a classification; 0: no pictures)')  # fmt: skip
    p.add_argument('--rows', type=int, default=4, help='pictures in each list (default: 4)')
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    p.add_argument('--debug', action='store_true', help='show the whole traceback of an error')
    args = p.parse_args(argv)
    if args.images is not None and args.images < 0:
        raise ValueError(f'--images must be at least 0, got {args.images}')
    if args.rows < 1:
        raise ValueError(f'--rows must be at least 1, got {args.rows}')
    out = Path(args.out or Path(args.work_dirs[0]) / 'report.html')
    if out.suffix not in ('.html', '.htm'):
        raise ValueError(f'--out: the file must end in .html, got {str(out)!r}')
    say = functools.partial(print, flush=True)
    logging.disable(logging.INFO)  # of loading
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # from the hosts' imports
            missing = write_report(args.work_dirs, out, args.methods, args.images, args.rows, args.device, say)
    finally:
        logging.disable(logging.NOTSET)
    for note in missing:
        print(f'note: {note}')
    print(f'report: {out}')


if __name__ == '__main__':
    try:
        from lckd_mm.cli import run_tool
    except ImportError as error:
        sys.exit(f'error: {error}')
    sys.exit(run_tool(main))
