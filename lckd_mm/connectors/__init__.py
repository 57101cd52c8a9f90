"""Connectors: modules between a tapped feature and the loss that make student and teacher comparable."""

from .base import Connector
from .chain import Chain
from .factors import AutoEncoder, ChannelPart, FactorEncoder, Paraphraser, Translator
from .layers import MLP, ConvBN, Linear, MaskedGenerator, MatchSize
from .statistics import MarginReLU, MatchStatistics, Standardise

__all__ = [
    'MLP',
    'AutoEncoder',
    'Chain',
    'ChannelPart',
    'Connector',
    'ConvBN',
    'FactorEncoder',
    'Linear',
    'MarginReLU',
    'MaskedGenerator',
    'MatchSize',
    'MatchStatistics',
    'Paraphraser',
    'Standardise',
    'Translator',
]
