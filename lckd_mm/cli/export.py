"""The code of tools/export.py: a student as a file that runs without this package or its host."""

import argparse
from pathlib import Path
from textwrap import shorten

import torch
from mmengine.registry import init_default_scope

from .. import __version__
from ..config import loads_bytes, loads_files, plain_model, size_in_tests, student_config
from ..errors import sigterm_raises
from ..hosts import WholePrediction, data_meta, image_channels, normalisation
from ..storage.checkpoint import load_strictly, student_alone
from ..storage.export import PlainForward
from ..storage.export import export as write
from ..storage.files import save_whole
from .commands import parser, read_config

_NOTES = """\
The file takes normalised images (the line printed says how) and gives the tensors of the model's plain forward: class
scores of a classifier or of a segmentor (at the head's own stride), the raw maps of a detector's head. With
--end-to-end it takes images as the test loads them and gives the class of each pixel, as the host predicts it with
mode='whole', or the probability of each class. Batch, height and width are free where the model allows it. The file is
written only if its outputs agree with the model's, on random images. A model that needs more than images, such as a
two-stage detector, is refused: its checkpoint is the plain one of its host, which mmdeploy exports."""
_TOLERANCE = "from the model's: in parts of the largest output; of probabilities as they are (default: 1e-4)"


def export(argv: list[str]) -> None:
    """``tools/export.py``."""
    p = parser('Export a model; of a distillation config, the student alone')
    p.epilog, p.formatter_class = _NOTES, argparse.RawDescriptionHelpFormatter
    p.add_argument('checkpoint', help='path of a checkpoint')
    p.add_argument('out', help="the file to write: ends in .onnx or .pt2; or in .pth, for the student's weights alone")
    p.add_argument('--end-to-end', action='store_true', help='with preprocessing, to classes or probabilities')
    p.add_argument('--size', type=int, nargs=2, metavar=('H', 'W'), help='of the images; by default those of the test')
    p.add_argument('--fixed', action='store_true', help='for one image of this size alone')
    p.add_argument('--tolerance', type=float, default=1e-4, help=_TOLERANCE)
    args = p.parse_args(argv)
    cfg = read_config(args)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    if args.out.endswith('.pth'):
        save_whole(student_alone(args.checkpoint, student_config(cfg).pretty_text, 'export'), args.out)
        return print(f'{args.out}: {Path(args.out).stat().st_size / 1e6:.1f} MB')
    model = plain_model(cfg)
    if args.end_to_end:
        forward = WholePrediction(model, torch.uint8 if loads_bytes(cfg) else torch.float32)
    else:
        forward = PlainForward(model, image_channels(model))
    meta = data_meta(student_config(cfg), load_strictly(model, args.checkpoint, 'export'))
    size = tuple(args.size) if args.size else size_in_tests(cfg, model)
    how = ([0.0], [1.0], False) if args.end_to_end else normalisation(model.data_preprocessor)
    meta |= dict(size=size, lckd_mm=__version__)
    if how:
        # Files are loaded as BGR; data sets that hold their images have RGB.
        order = 'RGB' if how[2] == loads_files(cfg) else 'BGR'
        order = order if forward.channels == 3 else 'as loaded'
        # The numbers of the config: a buffer of float32 has seven digits.
        mean, std = ([float(f'{x:.7g}') for x in values] for values in how[:2])
        meta |= dict(mean=mean, std=std, channel_order=order)
    meta = {key: value for key, value in meta.items() if value is not None}
    with sigterm_raises():  # drafts are removed
        shapes, worst, free, step, why = write(forward, args.out, size, args.fixed, args.tolerance, meta)
    mb = Path(args.out).stat().st_size / 1e6
    print(f'{args.out}: {mb:.1f} MB, {size[0]} x {size[1]} to {", ".join(map(str, shapes))}, differs by {worst:.1e}')
    fixed = [axis for axis in ('batch', 'height', 'width') if axis not in free]
    multiples = f' (multiples of {step})' if step > 1 else ''
    reason = f': {shorten(why, 150)}' if why else ''
    print(f'free: {", ".join(free) or "nothing"}{multiples}; fixed: {", ".join(fixed) or "nothing"}{reason}')
    if args.end_to_end:
        print(f'inputs: {str(forward.dtype)[6:]}, as the test pipeline loads images, channels {order}')
    elif how:
        print(f'inputs: (x - mean) / std with mean {mean}, std {std}, channels {order}')
