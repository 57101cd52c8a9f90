"""Drawing of predictions: on a few validation images during training, and of a whole test."""

from collections.abc import Sequence
from pathlib import Path

from mmengine.dataset import pseudo_collate
from mmengine.dist import master_only
from mmengine.hooks import Hook

from .. import arguments
from ..contexts import eval_mode, preserved_rng
from ..evaluation.drawing import HostPictures, draw, legend, original_image, side_by_side
from ..registry import HOOKS
from .distillation import distiller_of


@HOOKS.register_module()
class PredictionHook(Hook):
    """Draws a few validation images during training: input, truth, teacher and student side by side.

    The Visualizer gets them as ``prediction_<index>`` (a PNG in ``vis_data/vis_image``; TensorBoard too) before every
    ``interval``-th validation, with the weights that are validated (EMA's, if there is an EMA).

    Args:
        indices: indices of images in the validation set.
        interval: in validations.
    Example: ``custom_hooks = [dict(type='lckd_mm.PredictionHook', indices=[0, 7], interval=5)]``
    """

    priority = 'LOW'

    def __init__(self, indices: Sequence[int] = (0, 1, 2, 3), interval: int = 1):
        self.indices = indices
        self.interval = arguments.integer('PredictionHook', 'interval', interval)
        self._count = 0

    def before_train(self, runner) -> None:
        distiller_of(runner, 'PredictionHook').teacher.check_predicts('PredictionHook')

    @master_only
    def before_val_epoch(self, runner) -> None:
        self._count += 1
        if (self._count - 1) % self.interval:
            return
        model = distiller_of(runner, 'PredictionHook')
        dataset = runner.val_loop.dataloader.dataset
        for index in self.indices:
            if not 0 <= index < len(dataset):
                raise ValueError(f'PredictionHook: no image {index}, the validation set has {len(dataset)}')
            with preserved_rng(), eval_mode(model):
                batch = pseudo_collate([dataset[index]])
                truth = batch['data_samples'][0]
                student = model.test_step(batch)[0]
                teacher = model.teacher.predict(pseudo_collate([dataset[index]]), model.data_preprocessor)[0]
            image, meta = original_image(truth, batch['inputs'][0]), dataset.metainfo
            panels = {
                'input': image,
                'truth': draw(model.student, image, truth, meta, truth=True),
                'teacher': draw(model.student, image, teacher, meta),
                'student': draw(model.student, image, student, meta),
            }
            names = legend(model.student, [(truth, True), (teacher, False), (student, False)], meta)
            picture = side_by_side(panels, names=names)
            runner.visualizer.add_image(f'prediction_{index}', picture, step=runner.iter)


class PicturesHook(Hook):
    """Draws every prediction of a test into a folder: ``tools/test.py --show-dir``."""

    def __init__(self, pictures: HostPictures):
        self.pictures = pictures
        self._count = 0

    @master_only
    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        images = data_batch['inputs']
        # With test-time augmentation these are views, each of the whole batch: a list, or a tensor of four axes.
        images = images[0] if isinstance(images[0], (list, tuple)) or images[0].ndim == 4 else images
        for inputs, sample in zip(images, outputs, strict=True):
            image = original_image(sample, inputs)
            path = self.pictures.path(Path(sample.get('img_path') or f'{self._count:06d}').stem)
            self.pictures.write(path, image, sample, truth=True)
            self._count += 1
