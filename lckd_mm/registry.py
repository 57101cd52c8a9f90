"""Registries of this package, children of mmengine's, so that ``type='lckd_mm.X'`` works from any host's config.

mmengine imports this file when it meets the scope ``lckd_mm`` and then the ``locations`` below: no ``custom_imports``.
"""

try:
    import mmengine
    from mmengine.registry import DATASETS as MMENGINE_DATASETS
    from mmengine.registry import HOOKS as MMENGINE_HOOKS
    from mmengine.registry import METRICS as MMENGINE_METRICS
    from mmengine.registry import MODELS as MMENGINE_MODELS
    from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
    from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
    from mmengine.registry import Registry
    from mmengine.utils import digit_version
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'lckd_mm: the host library {error.name!r} is not installed; run `make install`, '
        "or `pip install 'lckd_mm[hosts]'` and then mmcv as the README says",
        name=error.name,
    ) from None

if digit_version(mmengine.__version__) < digit_version('0.10.0'):
    raise ImportError(f'lckd_mm: mmengine {mmengine.__version__} is too old, 0.10.0 or later is needed')

MODELS = Registry(
    'model',
    parent=MMENGINE_MODELS,
    scope='lckd_mm',
    locations=['lckd_mm.distiller', 'lckd_mm.losses', 'lckd_mm.connectors', 'lckd_mm.backbones', 'lckd_mm.heads'],
)
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='lckd_mm', locations=['lckd_mm.hooks'])
METRICS = Registry('metric', parent=MMENGINE_METRICS, scope='lckd_mm', locations=[])
DATASETS = Registry('dataset', parent=MMENGINE_DATASETS, scope='lckd_mm', locations=['lckd_mm.data.digits'])
TRANSFORMS = Registry('transform', parent=MMENGINE_TRANSFORMS, scope='lckd_mm', locations=[])
OPTIM_WRAPPERS = Registry('optim_wrapper', parent=MMENGINE_OPTIM_WRAPPERS, scope='lckd_mm', locations=['lckd_mm.optim'])
