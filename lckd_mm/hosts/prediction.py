"""A host's whole prediction of images, from their preprocessing to classes or probabilities, as a module of tensors."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .inputs import image_channels, normalisation
from .models import host_of


class WholePrediction(nn.Module):
    """Maps images as the test loads them, ``(B, C, H, W)``, 0 to 255, to what the host predicts of them.

    * Of a segmentor: the class of each pixel, ``(B, H, W)``, int64, as it is tested with ``mode='whole'``: normalised,
      padded, and the scores enlarged to the size of the image.
    * Of a classifier: the probability of each class, ``(B, classes)``, by the softmax of its scores.

    Resizing and cropping, which the test pipeline does before, are not in it.

    Args:
        dtype: of the images.
    Raises:
        ValueError: a model of another kind, one that is tested by sliding windows, or a classifier of several labels.
    """

    #: Whether a segmentor's scores are given, too: (B, classes, H, W).
    scored = False

    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.uint8):
        super().__init__()
        self.model, self.dtype, self.channels, self.host = model, dtype, image_channels(model), host_of(model)
        self.normalisation, name = normalisation(model.data_preprocessor), type(model).__name__
        if self.host == 'mmdet':
            raise ValueError(
                f'export: the boxes of {name} are decoded and filtered outside its forward: export its maps without '
                '--end-to-end, or the whole detector with mmdeploy'
            )
        if self.normalisation is None or not hasattr(model, 'encode_decode' if self.host == 'mmseg' else 'head'):
            raise ValueError(f'export: --end-to-end is for segmentors and classifiers of images, and {name} is neither')
        if self.host == 'mmseg' and (model.test_cfg or {}).get('mode') == 'slide':
            raise ValueError(
                f'export: {name} is tested by sliding windows, which are no single pass: export it without '
                "--end-to-end and slide it yourself, or set mode='whole' in its test_cfg, which may cost accuracy"
            )
        if self.host == 'mmpretrain':
            from mmpretrain.models import MultiLabelClsHead

            if isinstance(model.head, MultiLabelClsHead):
                raise ValueError(
                    f'export: {type(model.head).__name__} gives each class a probability of its own, and --end-to-end '
                    'is for one label: export it without, and take the sigmoid of its scores'
                )

    def checks(self) -> list[nn.Module]:
        """Of a segmentor, the same with its scores: where random images have one class only, classes tell nothing."""
        scored = copy.copy(self)
        scored.scored = True
        return [scored] if self.host == 'mmseg' else []

    def names(self, count: int) -> list[str]:
        return ['classes', 'scores'][:count] if self.host == 'mmseg' else ['probabilities']

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        height, width = inputs.shape[2:]
        x = self._preprocessed(inputs)
        if self.host == 'mmpretrain':
            return (self.model(x, mode='tensor').softmax(1),)
        size = tuple(x.shape[2:])
        meta = dict(img_shape=size, pad_shape=size, ori_shape=size, padding_size=[0] * 4)
        scores = self.model.encode_decode(x, [meta])[:, :, :height, :width]
        scores = self._of_every_class(scores.sigmoid() if scores.shape[1] == 1 else scores)
        return (scores.argmax(1), scores) if self.scored else (scores.argmax(1),)

    def _preprocessed(self, inputs: Tensor) -> Tensor:
        preprocessor, (mean, std, flipped) = self.model.data_preprocessor, self.normalisation
        x = (inputs.flip(1) if flipped and self.channels == 3 else inputs).float()
        x = (x - x.new_tensor(mean).view(-1, 1, 1)) / x.new_tensor(std).view(-1, 1, 1)
        height, width = x.shape[2:]
        if self.host == 'mmpretrain':
            divisor, least, value = preprocessor.pad_size_divisor, None, preprocessor.pad_value
        else:
            rule = preprocessor.test_cfg or {}
            divisor, least, value = rule.get('size_divisor'), rule.get('size'), preprocessor.pad_val
        if least is not None:
            return F.pad(x, (0, max(least[-1] - width, 0), 0, max(least[-2] - height, 0)), value=value)
        if divisor and divisor > 1:
            return F.pad(x, (0, -width % divisor, 0, -height % divisor), value=value)
        return x

    def _of_every_class(self, scores: Tensor) -> Tensor:
        """The scores of both classes where there is one, the probability of the second, and a threshold."""
        if scores.shape[1] > 1:
            return scores
        return torch.cat([torch.full_like(scores, self.model.decode_head.threshold), scores], 1)

    def images(self, batch: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Random images."""
        return torch.randint(0, 256, (batch, self.channels, *size), generator=generator).to(self.dtype)

    def difference(self, outputs: list[Tensor], images: Tensor) -> float:
        """The difference of ``outputs`` to the host's own test step.

        The largest one of the probabilities; or by how much the score of the class of a pixel is below the largest,
        in parts of the largest score of all: 0 if every class is the host's. With scores, their difference counts, too.
        """
        size = tuple(images.shape[2:])
        meta = dict(img_shape=size, pad_shape=size, ori_shape=size, sample_idx=0)
        if self.host == 'mmpretrain':
            from mmpretrain.structures import DataSample as Sample
        else:
            from mmseg.structures import SegDataSample as Sample
        batch = dict(inputs=list(images), data_samples=[Sample(metainfo=meta) for _ in images])
        predicted = self.model.test_step(batch)
        if self.host == 'mmpretrain':
            return float((outputs[0] - torch.stack([sample.pred_score for sample in predicted])).abs().max())
        scores = self._of_every_class(torch.stack([sample.seg_logits.data for sample in predicted]))
        if outputs[0].shape != scores[:, 0].shape:
            return float('inf')
        behind = scores.amax(1) - scores.gather(1, outputs[0][:, None])[:, 0]
        gaps = [behind.max(), *((x - scores).abs().max() for x in outputs[1:])]
        return float(torch.stack(gaps).max() / scores.abs().max().clamp(min=1e-12))
