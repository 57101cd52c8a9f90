"""Preprocessors and first layers: how a batch of images is normalised, and how many channels an image has."""

from torch import nn


def normalisation(preprocessor: nn.Module | None) -> tuple[list[float], list[float], bool] | None:
    """(mean, std, channels flipped) that a preprocessor applies; None if it does not tell.

    mean and std are in the output's channel order, of one number each if all channels share it; flipped is relative to
    the loaded image.
    """
    if not hasattr(preprocessor, '_enable_normalize'):
        return None
    # The three hosts name the same flag differently.
    flipped = any(
        bool(getattr(preprocessor, name, False)) for name in ('channel_conversion', '_channel_conversion', 'to_rgb')
    )
    if not preprocessor._enable_normalize:
        return [0.0], [1.0], flipped
    return preprocessor.mean.flatten().tolist(), preprocessor.std.flatten().tolist(), flipped


def image_channels(model: nn.Module) -> int:
    """The channels of a model's normalised images.

    The first known of: the length of the preprocessor's mean, if it is above 1 (a single number serves any image);
    those of the backbone's first convolution (its own ``in_channels`` may be a count from its construction); 3.
    """
    preprocessor = getattr(model, 'data_preprocessor', None)
    mean = normalisation(preprocessor)[0] if getattr(preprocessor, '_enable_normalize', False) else []
    if len(mean) > 1:
        return len(mean)
    for module in getattr(model, 'backbone', model).modules():
        if type(module).__name__ == 'Focus':
            # It stacks each 2 x 2 pixels into channels before its convolution.
            return next(m.in_channels for m in module.modules() if isinstance(m, nn.Conv2d)) // 4
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return 3
