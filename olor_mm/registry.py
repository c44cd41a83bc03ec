"""Child registries of MMEngine's, so that ``type='olor_mm.X'`` is found in any default scope."""

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import OPTIMIZERS as MMENGINE_OPTIMIZERS
from mmengine.registry import Registry

OPTIMIZERS = Registry('optimizer', scope='olor_mm', parent=MMENGINE_OPTIMIZERS, locations=['olor_mm.engine'])
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    scope='olor_mm',
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    locations=['olor_mm.engine'],
)
HOOKS = Registry('hook', scope='olor_mm', parent=MMENGINE_HOOKS, locations=['olor_mm.engine'])
