"""What differs between the host libraries. A new host starts here; docs/design.md lists the other files."""

from .heads import has_sigmoids, owner_head
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
from .samples import (
    class_targets,
    fabricate_samples,
    lacks_operator,
    relative_boxes,
    resized_labels,
    run_once,
    samples_for_loss,
    training_size,
    valid_region,
)

__all__ = [
    'build_model',
    'build_named_model',
    'class_targets',
    'fabricate_samples',
    'has_sigmoids',
    'host_of',
    'image_channels',
    'lacks_operator',
    'load_config',
    'normalisation',
    'own_losses',
    'owner_head',
    'read_model_config',
    'relative_boxes',
    'resized_labels',
    'run_once',
    'samples_for_loss',
    'training_size',
    'unwrapped',
    'valid_region',
]
