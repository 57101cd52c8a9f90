"""Pure tensor functions that depend on torch only."""

from .adversarial import convex_phi, critic_loss, fooling_loss, gradient_norms, interpolates, slope_penalty
from .bias import ClassBias, class_bias, confusion_matrix, modal_prediction, one_against_rest
from .detection import absolute_attention, attended_context, box_masks, focal_distances
from .features import (
    activation_boundary,
    attended_distance,
    attention_map,
    bn_margin,
    channel_divergence,
    factor_distance,
    margin_relu,
    partial_l2,
    standardised,
)
from .jacobian import directional_gap, unit_gap
from .lipschitz import (
    graph_bound,
    lipschitz_gap,
    local_lipschitz,
    product_bound,
    spectral_norm,
    transmitting_matrix,
    transmitting_norm,
    transmitting_norms,
)
from .logits import (
    binary_kd_divergence,
    decoupled_kd,
    gradient_rescaling,
    kd_divergence,
    partial_target,
    row_similarities,
    target_divergence,
)
from .relations import pairwise_angles, pairwise_distances

__all__ = [
    'ClassBias',
    'absolute_attention',
    'activation_boundary',
    'attended_context',
    'attended_distance',
    'attention_map',
    'binary_kd_divergence',
    'bn_margin',
    'box_masks',
    'channel_divergence',
    'class_bias',
    'confusion_matrix',
    'convex_phi',
    'critic_loss',
    'decoupled_kd',
    'directional_gap',
    'factor_distance',
    'focal_distances',
    'fooling_loss',
    'gradient_norms',
    'gradient_rescaling',
    'graph_bound',
    'interpolates',
    'kd_divergence',
    'lipschitz_gap',
    'local_lipschitz',
    'margin_relu',
    'modal_prediction',
    'one_against_rest',
    'pairwise_angles',
    'pairwise_distances',
    'partial_l2',
    'partial_target',
    'product_bound',
    'row_similarities',
    'slope_penalty',
    'spectral_norm',
    'standardised',
    'target_divergence',
    'transmitting_matrix',
    'transmitting_norm',
    'transmitting_norms',
    'unit_gap',
]
