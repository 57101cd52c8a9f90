"""Save a config's training images after augmentation, with ground truth: … CONFIG --out DIR [--number 16]."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main(argv: list[str]) -> None:
    import cv2
    from mmengine.registry import init_default_scope
    from mmengine.runner import Runner, set_random_seed

    from lckd_mm.cli import Options, read_config
    from lckd_mm.config import check_data, plain_model
    from lckd_mm.evaluation.drawing import draw, legend, loaded_image, side_by_side

    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('config', help='path of a config file')
    p.add_argument('--out', required=True, help='folder for the pictures')
    p.add_argument('--split', choices=['train', 'val', 'test'], default='train')
    p.add_argument('--number', type=int, default=16, help='pictures (default: 16)')
    p.add_argument('--seed', type=int, default=0, help='of the augmentations')
    p.add_argument('--cfg-options', nargs='+', action=Options, default={}, metavar='KEY=VALUE')
    p.add_argument('--debug', action='store_true', help='show the whole traceback of an error')
    args = p.parse_args(argv)
    if args.number < 1:
        raise ValueError(f'--number must be at least 1, got {args.number}')
    args.launcher, args.work_dir = 'none', None
    cfg = read_config(args)
    loader = cfg.get(f'{args.split}_dataloader')
    if loader is None:
        raise KeyError(f'config {args.config!r} has no {args.split}_dataloader')
    check_data(cfg, (f'{args.split}_dataloader',))
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    host = plain_model(cfg)
    set_random_seed(args.seed)
    dataset = Runner.build_dataloader(dict(loader, num_workers=0, persistent_workers=False)).dataset
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    count = min(args.number, len(dataset))
    for index in range(count):
        item = dataset[index]
        sample, meta = item['data_samples'], dataset.metainfo
        image = loaded_image(item['inputs'], bgr=bool(sample.get('img_path')))
        truth = draw(host, image, sample, meta, truth=True)
        picture = side_by_side({'input': image, 'truth': truth}, names=legend(host, [(sample, True)], meta))
        cv2.imwrite(str(out / f'{args.split}_{index:05d}.png'), picture[..., ::-1])
    print(f'{count} of {len(dataset)} pictures in {out}')


if __name__ == '__main__':
    try:
        from lckd_mm.cli import run_tool
    except ImportError as error:
        sys.exit(f'error: {error}')
    sys.exit(run_tool(main))
