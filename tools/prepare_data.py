"""Prepare data sets: make the digit scenes, or lay out downloaded data as the hosts read them."""

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from scenes.bccd import convert_bccd
from scenes.digit_scenes import write_digit_scenes
from scenes.fashion_mnist import convert_fashion_mnist
from scenes.nuclei import convert_nuclei
from scenes.sbd import convert_sbd

from lckd_mm.errors import one_line, sigterm_raises

DOWNLOADED = {
    'bccd': (convert_bccd, 'data/bccd', 'lay out BCCD (blood cells, boxes) for configs/bccd'),
    'nuclei': (convert_nuclei, 'data/nuclei', 'lay out the nuclei of the Data Science Bowl 2018 for configs/nuclei'),
    'fashion-mnist': (convert_fashion_mnist, 'data/fashion_mnist', 'unzip Fashion-MNIST for configs/fashion_mnist'),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    # SUPPRESS: otherwise the subcommand's default would override a --debug given before it.
    debug = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    debug.add_argument('--debug', action='store_true', help='show the traceback of an error')
    parser = argparse.ArgumentParser(description=__doc__, parents=[debug])
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')

    scenes = commands.add_parser(
        'digit-scenes',
        parents=[debug],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        help='make the digit scenes: masks and boxes in the layout of PASCAL VOC, no download',
    )
    scenes.add_argument('--out', default='data/digit_scenes', help='folder to make')
    scenes.add_argument('--train', type=int, default=800, help='number of training scenes')
    scenes.add_argument('--val', type=int, default=200, help='number of validation scenes')
    scenes.add_argument('--size', type=int, default=96, help='side of the pictures in pixels')
    scenes.add_argument('--seed', type=int, default=0, help='another seed makes other scenes')
    scenes.add_argument('--force', action='store_true', help='replace a folder that this command wrote')

    sbd = commands.add_parser(
        'sbd', parents=[debug], help='write SegmentationClassAug and aug.txt for pascal_voc12_aug.py'
    )
    sbd.add_argument('sbd_root', metavar='SBD_ROOT', help='folder that SBD was unpacked into')
    sbd.add_argument('voc_root', metavar='VOC_ROOT', help='the folder VOC2012 of VOCdevkit')

    for name, (_, out, text) in DOWNLOADED.items():
        command = commands.add_parser(
            name, parents=[debug], formatter_class=argparse.ArgumentDefaultsHelpFormatter, help=text
        )
        command.add_argument('source', metavar='SOURCE', help='the downloaded archive, or its folder')
        command.add_argument('--out', default=out, help='folder to make')
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    if args.command == 'digit-scenes':
        root = write_digit_scenes(args.out, args.train, args.val, args.size, args.seed, force=args.force)
        print(f'{args.train} training and {args.val} validation scenes are in {root}')
    elif args.command in DOWNLOADED:
        root = DOWNLOADED[args.command][0](args.source, args.out)
        print(f'{args.command} is in {root}')
    else:
        convert_sbd(args.sbd_root, args.voc_root)
        print(f'masks are in {args.voc_root}/SegmentationClassAug, the added ids in ImageSets/Segmentation/aug.txt')


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    logging.basicConfig(format='%(message)s', level=logging.INFO, stream=sys.stderr)
    try:
        with sigterm_raises():
            run(args)
    except (ValueError, KeyError, OSError) as error:
        if 'debug' in args:
            raise
        print(f'error: {one_line(error)}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('interrupted; no half-written file is left', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
