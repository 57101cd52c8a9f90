"""The documentation's own blocks of code, and the files that stand for a user's in them."""

import json
import re
import shutil

from mmengine.config import Config
from mmengine.registry import DefaultScope
from run_helpers import HOSTS, ROOT, classification_data, config, detection_data, validation

from lckd_mm.cli import run_tool, train

PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md')), *sorted((ROOT / 'configs').glob('*/README.md'))]


def blocks(text: str, language: str = 'python') -> list[str]:
    """The contents of the fenced blocks of a language."""
    return [block for kind, block in re.findall(r'^```(\w*)\n(.*?)^```$', text, re.M | re.S) if kind == language]


def section(text: str, title: str) -> str:
    """What stands below a heading, up to the next one of its rank."""
    found = re.search(rf'^(#+) {re.escape(title)}\n(.*?)(?=^\1 |\Z)', text, re.M | re.S)
    assert found, title
    return found[2]


def call(*argv) -> None:
    """tools/train.py's main, as the command line calls it."""
    DefaultScope._instance_dict.clear()
    assert run_tool(train, [*map(str, argv), '--debug']) == 0


def history(work_dir):
    """What the Runner has logged."""
    (file,) = work_dir.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in file.read_text().splitlines()]


def evaluation(host, root):
    """Loaders and metric of a host, on two images."""
    if host == 'mmseg':
        extra = validation(root)
    else:
        data, metric = {
            'mmdet': (detection_data(root, 'val'), dict(type='VOCMetric', metric='mAP')),
            'mmpretrain': (classification_data(root, 'train'), dict(type='Accuracy')),
        }[host]
        if host == 'mmdet':
            data['pipeline'] = [
                dict(type='LoadImageFromFile'),
                dict(type='Resize', scale=(64, 64), keep_ratio=True),
                dict(type='LoadAnnotations', with_bbox=True),
                dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
            ]
            data['test_mode'] = True
        loader = dict(batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False), dataset=data)
        extra = dict(val_dataloader=loader, val_cfg=dict(type='ValLoop'), val_evaluator=metric)
    extra['val_dataloader']['dataset']['indices'] = 2
    extra.update(
        test_dataloader=extra['val_dataloader'], test_cfg=dict(type='TestLoop'), test_evaluator=extra['val_evaluator']
    )
    return extra


def write_own_files(folder, host, scenes, iters=2) -> None:
    """my_student.py and my_teacher.py, plain configs of a host that train alone, and teacher.pth, trained by one."""
    for name, width in (('my_student', 8), ('my_teacher', 12)):
        cfg = config(host, scenes, folder / name, HOSTS[host][0](width), iters, **evaluation(host, scenes))
        # A user's config says no work_dir, so that runs go where their own config's name says.
        Config({key: value for key, value in cfg.to_dict().items() if key != 'work_dir'}).dump(folder / f'{name}.py')
    options = ['--cfg-options', f'train_cfg.val_interval={iters + 1}']
    call(folder / 'my_teacher.py', '--work-dir', folder / 'teacher', *options)
    shutil.copy(folder / 'teacher' / f'iter_{iters}.pth', folder / 'teacher.pth')
