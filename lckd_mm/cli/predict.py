"""The code of tools/predict.py: predictions for single images, by the hosts' own inference."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from torch import nn

from ..config import loads_files, plain_datasets, plain_model, size_in_tests, student_config
from ..evaluation.drawing import HostPictures
from ..hosts import data_meta, host_of, image_channels
from ..registry import type_name
from ..storage.checkpoint import load_strictly
from .commands import parser, read_config

#: Boxes with a lower score are neither drawn nor printed; the default of mmdet's visualizer.
_THRESHOLD = 0.3


def predict(argv: list[str]) -> None:
    """``tools/predict.py``."""
    p = parser('Predict single images; with a distillation config by the student alone')
    p.add_argument('checkpoint', help='path of a checkpoint')
    p.add_argument('images', nargs='+', metavar='IMAGE', help='image files')
    p.add_argument('--out', required=True, metavar='DIR', help='the folder for the pictures')
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help='such as cpu or cuda:1')
    args = p.parse_args(argv)
    cfg = student_config(read_config(args))
    if cfg.get('test_dataloader') is None:
        raise KeyError(f'config {args.config!r} has no test_dataloader, whose pipeline prepares the images')
    for file in args.images:  # read again, one by one, where they are predicted
        if cv2.imread(file) is None:
            raise FileNotFoundError(f'predict: {file!r} is no image file that OpenCV reads')
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    model = revert_sync_batchnorm(plain_model(cfg))
    meta = data_meta(cfg, load_strictly(model, args.checkpoint, 'predict'))
    pictures = HostPictures(model, meta, args.out)
    paths = {file: pictures.path(Path(file).stem) for file in args.images}
    sources = {Path(file).resolve() for file in args.images}
    for path in paths.values():
        if path.resolve() in sources:
            raise ValueError(f'predict: --out {args.out!r}: {str(path)!r} is one of the images; give another folder')
    infer = inference(model.to(args.device).eval(), cfg)
    for file, path in paths.items():
        sample = infer(file)
        pictures.write(path, cv2.imread(file)[..., ::-1].copy(), sample)
        print(f'{file}: {found(sample, meta["classes"])}; {path}')


def inference(model: nn.Module, cfg: Config) -> Callable[[str], Any]:
    """The inference of the model's host: maps an image file to its data sample with the prediction.

    Where the data set holds its images, so that the pipeline loads none (CIFAR), a file becomes what that would hold:
    RGB, or grey for a net of one channel, at the size of the test.
    """
    dataset, of_files = next(plain_datasets(cfg.test_dataloader.dataset)), loads_files(cfg)
    width, height = size_in_tests(cfg, model)[::-1]
    pipeline = [step for step in dataset.pipeline if type_name(step['type']) != 'LoadAnnotations']
    # Each host looks for the config in one place, and for the pipeline in another.
    model.cfg = model._config = cfg
    cfg.test_pipeline = cfg.test_dataloader.dataset.pipeline = pipeline
    host = host_of(model)
    if host == 'mmseg':
        from mmseg.apis import inference_model

        return lambda file: inference_model(model, file)
    if host == 'mmdet':
        from mmdet.apis import inference_detector

        return lambda file: inference_detector(model, file, Compose(pipeline))
    import mmcv
    from mmpretrain.apis import ImageClassificationInferencer

    inferencer, grey = ImageClassificationInferencer(model), image_channels(model) == 1
    # The inferencer has a loader of its own, which reads three channels.
    kind = pipeline[0].get('color_type', 'color')

    def loaded(file: str) -> str | np.ndarray:
        if of_files:
            return file if kind == 'color' else mmcv.imread(file, flag=kind)
        image = cv2.cvtColor(cv2.imread(file), cv2.COLOR_BGR2GRAY if grey else cv2.COLOR_BGR2RGB)
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)

    # Calling it would draw a progress bar for each image.
    return lambda file: inferencer.forward(next(inferencer.preprocess([loaded(file)])))[0]


def _highest(scores: list[float], most: int = 5) -> str:
    listed = ', '.join(f'{score:.2f}' for score in sorted(scores, reverse=True)[:most])
    return f'{listed}, …' if len(scores) > most else listed


def found(sample: Any, classes: Sequence[str] | None) -> str:
    """What a prediction says, in a line: the largest areas, the boxes by class, or the likeliest classes."""

    def name(label: int) -> str:
        return classes[label] if classes else f'class {label}'

    if 'pred_score' in sample:
        top = sample.pred_score.topk(min(3, len(sample.pred_score)))
        return ', '.join(f'{name(i)} {score:.2f}' for score, i in zip(top.values.tolist(), top.indices.tolist()))
    if 'pred_instances' in sample:
        scores = defaultdict(list)
        for label, score in zip(sample.pred_instances.labels.tolist(), sample.pred_instances.scores.tolist()):
            if score > _THRESHOLD:
                scores[label].append(score)
        each = (f'{len(of)} {name(label)} ({_highest(of)})' for label, of in scores.items())
        return ', '.join(each) or f'nothing with a score above {_THRESHOLD}'
    if 'pred_sem_seg' in sample:
        areas = Counter(sample.pred_sem_seg.data.int().flatten().tolist())
        total = sum(areas.values())
        return ', '.join(f'{name(label)} {100 * area / total:.1f} %' for label, area in areas.most_common(5))
    return 'drawn'
