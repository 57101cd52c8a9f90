"""Export a student to ONNX or torch.export: python tools/export.py CONFIG CHECKPOINT student.onnx [--size 512 512]."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

NOTES = """\
The file takes normalised images (the line printed says how) and gives the tensors of the model's plain forward: class
scores of a classifier or of a segmentor (at the head's own stride), the raw maps of a detector's head. It is
written only if its outputs agree with the model's, on random images. A model that needs more than images, such as a
two-stage detector, is refused: its checkpoint is the plain one of its host, which mmdeploy exports."""


def main(argv: list[str]) -> None:
    from mmengine.registry import init_default_scope

    from lckd_mm.cli import parser, read_config
    from lckd_mm.config import input_size, plain_model, student_config
    from lckd_mm.hosts import image_channels, normalisation
    from lckd_mm.storage.checkpoint import load_strictly, student_alone
    from lckd_mm.storage.export import export
    from lckd_mm.storage.files import save_whole

    p = parser('Export a model; of a distillation config, the student alone')
    p.epilog, p.formatter_class = NOTES, argparse.RawDescriptionHelpFormatter
    p.add_argument('checkpoint', help='path of a checkpoint')
    p.add_argument('out', help="the file to write: ends in .onnx or .pt2; or in .pth, for the student's weights alone")
    p.add_argument('--size', type=int, nargs=2, metavar=('H', 'W'), help='of the images; by default those of training')
    p.add_argument('--dynamic-batch', action='store_true', help='let the batch be of any size')
    p.add_argument('--tolerance', type=float, default=1e-4, help='in parts of the largest output (default: 1e-4)')
    args = p.parse_args(argv)
    cfg = read_config(args)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    if args.out.endswith('.pth'):
        save_whole(student_alone(args.checkpoint, student_config(cfg).pretty_text, 'export'), args.out)
        return print(f'{args.out}: {Path(args.out).stat().st_size / 1e6:.1f} MB')
    model = plain_model(cfg)
    load_strictly(model, args.checkpoint, 'export')
    size = tuple(args.size) if args.size else input_size(cfg, model)
    channels = image_channels(model)
    shapes, worst = export(model, args.out, size, args.dynamic_batch, args.tolerance, channels)
    mb = Path(args.out).stat().st_size / 1e6
    print(f'{args.out}: {mb:.1f} MB, {size[0]} x {size[1]} to {", ".join(map(str, shapes))}, differs by {worst:.1e}')
    how = normalisation(model.data_preprocessor)
    if how:
        mean, std, flipped = how
        order = 'flipped from the order of the file that was loaded (BGR to RGB, as a rule)' if flipped else 'as loaded'
        print(f'inputs: (x - mean) / std with mean {mean}, std {std}, channels {order}')


if __name__ == '__main__':
    try:
        from lckd_mm.cli import run_tool
    except ImportError as error:
        sys.exit(f'error: {error}')
    sys.exit(run_tool(main))
