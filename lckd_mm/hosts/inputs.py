"""Preprocessors: how they normalise a batch of images."""

from torch import nn


def normalisation(preprocessor: nn.Module | None) -> tuple[list[float], list[float], bool] | None:
    """(mean, std, channels flipped) that a preprocessor applies; None if it does not tell.

    mean and std are in the output's channel order; flipped is relative to the loaded image.
    """
    if not hasattr(preprocessor, '_enable_normalize'):
        return None
    # The three hosts name the same flag differently.
    flipped = any(
        bool(getattr(preprocessor, name, False)) for name in ('channel_conversion', '_channel_conversion', 'to_rgb')
    )
    if not preprocessor._enable_normalize:
        return [0.0] * 3, [1.0] * 3, flipped
    return preprocessor.mean.flatten().tolist(), preprocessor.std.flatten().tolist(), flipped
