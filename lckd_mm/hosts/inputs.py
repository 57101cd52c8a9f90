"""Preprocessors: what they do to a batch of images."""

from torch import nn


def normalisation(preprocessor: nn.Module | None) -> tuple[list[float], list[float], bool] | None:
    """(mean, std, channels flipped) that a preprocessor applies; None where it does not say.

    mean and std count the channels as they come out; flipped is against the order of the loaded image.
    """
    if not hasattr(preprocessor, '_enable_normalize'):
        return None
    # The three hosts name the same switch differently.
    flipped = any(
        bool(getattr(preprocessor, name, False)) for name in ('channel_conversion', '_channel_conversion', 'to_rgb')
    )
    if not preprocessor._enable_normalize:
        return [0.0] * 3, [1.0] * 3, flipped
    return preprocessor.mean.flatten().tolist(), preprocessor.std.flatten().tolist(), flipped
