"""Pure tensor functions that depend on torch only."""

from .adversarial import convex_phi, gradient_norms
from .bias import ClassBias, class_bias, confusion_matrix, modal_prediction, one_against_rest
from .bounds import graph_bound, product_bound
from .boxes import giou
from .constants import local_lipschitz
from .features import bn_margin, standardised
from .lipschitz import (
    lipschitz_gap,
    transmitting_matrix,
    transmitting_norm,
    transmitting_norms,
)
from .logits import (
    binary_kd_divergence,
    decoupled_kd,
    focal_cross_entropy,
    gradient_rescaling,
    kd_divergence,
    partial_target,
    row_similarities,
    standardised_scores,
    target_divergence,
)
from .points import dice_distance, point_values, uncertain_points
from .topk import spread_scores, top_scores

__all__ = [
    'ClassBias',
    'binary_kd_divergence',
    'bn_margin',
    'class_bias',
    'confusion_matrix',
    'convex_phi',
    'decoupled_kd',
    'dice_distance',
    'focal_cross_entropy',
    'giou',
    'gradient_norms',
    'gradient_rescaling',
    'graph_bound',
    'kd_divergence',
    'lipschitz_gap',
    'local_lipschitz',
    'modal_prediction',
    'one_against_rest',
    'partial_target',
    'point_values',
    'product_bound',
    'row_similarities',
    'spread_scores',
    'standardised',
    'standardised_scores',
    'target_divergence',
    'top_scores',
    'transmitting_matrix',
    'transmitting_norm',
    'transmitting_norms',
    'uncertain_points',
]
