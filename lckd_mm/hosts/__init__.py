"""What differs between the host libraries. A new host starts here; docs/design.md lists the other files."""

from .boxes import check_box_layers, check_boxes, check_same_boxes, decoded_boxes, positives
from .classes import class_names, config_class_names, data_meta, datasets, score_count, scores_classes
from .heads import comparable_parts, has_sigmoids, owner_head, row_choosers
from .inputs import image_channels, normalisation
from .models import (
    build_model,
    build_named_model,
    host_of,
    load_config,
    own_losses,
    read_model_config,
    unwrapped,
)
from .modules import AS_BUILT, ModuleForward, as_built, build_module, forward
from .prediction import WholePrediction
from .samples import (
    class_targets,
    fabricate_samples,
    lacks_operator,
    own_sizes,
    relative_boxes,
    resized_labels,
    run_once,
    sample_indices,
    samples_for_loss,
    training_size,
    valid_region,
)

__all__ = [
    'AS_BUILT',
    'ModuleForward',
    'WholePrediction',
    'as_built',
    'build_model',
    'build_module',
    'build_named_model',
    'check_box_layers',
    'check_boxes',
    'check_same_boxes',
    'class_names',
    'class_targets',
    'comparable_parts',
    'config_class_names',
    'data_meta',
    'datasets',
    'decoded_boxes',
    'fabricate_samples',
    'forward',
    'has_sigmoids',
    'host_of',
    'image_channels',
    'lacks_operator',
    'load_config',
    'normalisation',
    'own_losses',
    'own_sizes',
    'owner_head',
    'positives',
    'read_model_config',
    'relative_boxes',
    'resized_labels',
    'row_choosers',
    'run_once',
    'sample_indices',
    'samples_for_loss',
    'score_count',
    'scores_classes',
    'training_size',
    'unwrapped',
    'valid_region',
]
