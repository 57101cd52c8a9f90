"""A hook, imported by a config, with which each rank notes the names of its unlabelled images."""

from pathlib import Path

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class StreamRecorder(Hook):
    """Appends to ``stream<rank>.txt`` in the work_dir."""

    priority = 'LOW'

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        names = [Path(sample.img_path).name for sample in runner.model.module.unlabelled['data_samples']]
        with open(Path(runner.work_dir, f'stream{get_rank()}.txt'), 'a') as file:
            file.write('\n'.join(names) + '\n')
