"""What differs between the host libraries: a further host is a change here."""

from .models import (
    HOSTS,
    build_model,
    build_named_model,
    fabricate_samples,
    host_of,
    load_config,
    normalisation,
    owner_head,
    read_model_config,
    run_once,
    training_size,
    unwrapped,
    valid_region,
)

__all__ = [
    'HOSTS',
    'build_model',
    'build_named_model',
    'fabricate_samples',
    'host_of',
    'load_config',
    'normalisation',
    'owner_head',
    'read_model_config',
    'run_once',
    'training_size',
    'unwrapped',
    'valid_region',
]
