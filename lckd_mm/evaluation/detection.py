"""mmdet's VOC metric with the AP of each class."""

from collections.abc import Sequence
from typing import Any

from mmdet.evaluation import eval_map
from mmdet.evaluation.metrics import VOCMetric as HostVOCMetric
from mmengine.logging import MMLogger


class VOCMetric(HostVOCMetric):
    """mmdet's ``VOCMetric`` of mAP, which also reports ``AP50_CLASS`` and so on, for each threshold and class.

    A data set in which objects of one class were left out caps the AP of that class; the mean does not show it. Numbers
    are not rounded. A class without ground truth has no AP, and does not count in the mean.

    Raises:
        ValueError: another metric than mAP, or ``scale_ranges``: both are the host's alone.
    Example:
        val_evaluator = dict(type='lckd_mm.VOCMetric', metric='mAP', iou_thrs=[0.5, 0.7])
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.metric != 'mAP' or self.scale_ranges is not None:
            raise ValueError(
                f'lckd_mm.VOCMetric: gives the mAP of boxes of all sizes, got metric={self.metric!r} and '
                f'scale_ranges={self.scale_ranges}; use mmdet.VOCMetric'
            )

    def compute_metrics(self, results: Sequence) -> dict[str, float]:
        truth, found = zip(*results)
        classes, values = self.dataset_meta['classes'], {}
        for threshold in self.iou_thrs:
            mean, of_classes = eval_map(
                found,
                truth,
                iou_thr=threshold,
                dataset=classes,
                logger=MMLogger.get_current_instance(),
                eval_mode=self.eval_mode,
                use_legacy_coordinate=True,
            )
            key = f'AP{round(100 * threshold):02d}'
            values[key] = float(mean)
            of_names = zip(classes, of_classes)
            values |= {f'{key}_{name}': float(one['ap']) for name, one in of_names if one['num_gts'] > 0}
        return {'mAP': sum(values[f'AP{round(100 * t):02d}'] for t in self.iou_thrs) / len(self.iou_thrs), **values}
