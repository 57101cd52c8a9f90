"""List what can be tapped in a config's model: python tools/analysis/list_taps.py CONFIG [--teacher] [--size 224]."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main(argv: list[str]) -> None:
    from mmengine.config import DictAction
    from mmengine.registry import init_default_scope
    from rich.console import Console
    from rich.table import Table

    from lckd_mm.cli import is_distillation, read_config, student_config
    from lckd_mm.hosts import build_model, read_model_config, run_once, training_size
    from lckd_mm.taps import list_taps

    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('config')
    p.add_argument('--teacher', action='store_true', help="the teacher's taps, of a distillation config")
    p.add_argument('--size', type=int, help='height and width of the image that is run')
    p.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE')
    p.add_argument('--debug', action='store_true', help='show the whole traceback of an error')
    args = p.parse_args(argv)
    args.launcher, args.work_dir = 'none', None
    cfg = read_config(args)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    if args.teacher:
        if not is_distillation(cfg):
            raise ValueError(f'{args.config!r} is no distillation config, so it has no teacher')
        model = build_model(*read_model_config(cfg.model.teacher.model, 'teacher'))
    else:
        model = student_config(cfg).model
        if cfg.get('data_preprocessor') is not None:
            model.setdefault('data_preprocessor', cfg.data_preprocessor)
        model = build_model(model)
    size = (args.size, args.size) if args.size else training_size(model)
    table = Table(title=f'{type(model).__name__}, one image of {size[0]} x {size[1]}', title_justify='left')
    for column in ('address', 'module', 'calls', 'shape', 'note'):
        table.add_column(column, overflow='fold')
    for row in list_taps(model, lambda: run_once(model, size, 'tensor')):
        table.add_row(row.address, row.kind, str(row.calls), row.shape, row.note)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == '__main__':
    try:
        from lckd_mm.cli import run_tool
    except ImportError as error:
        sys.exit(f'error: {error}')
    sys.exit(run_tool(main))
