"""What configs can name, registered in MMEngine's registries and in children of them, without importing much.

With ``custom_imports=dict(imports=['olor_mm'])``, ``type='AdamWOLOR'`` is found in any default scope; without, it is
``type='olor_mm.AdamWOLOR'``. :mod:`olor_mm.engine`, for which MMEngine has to import half of ``torch.distributed``, is
imported once something of it is built.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import OPTIMIZERS as MMENGINE_OPTIMIZERS
from mmengine.registry import Registry

from .optim.optimizers import registered
from .scopes import resolve_config_scopes

ENGINE = 'olor_mm.engine'
OPTIMIZERS = Registry('optimizer', scope='olor_mm', parent=MMENGINE_OPTIMIZERS, locations=[ENGINE])
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor', scope='olor_mm', parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS, locations=[ENGINE]
)
# empty: what is inherited from a config of olor_mm::, `_base_.olor_optim_wrapper` for one, is built in this scope
OPTIM_WRAPPERS = Registry('optim_wrapper', scope='olor_mm', parent=MMENGINE_OPTIM_WRAPPERS, locations=[ENGINE])
HOOKS = Registry('hook', scope='olor_mm', parent=MMENGINE_HOOKS, locations=[ENGINE])
OF_ENGINE = {
    MMENGINE_OPTIMIZERS: ('OLOR', 'ZeroRedundancyOptimizerOLOR'),
    MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS: ('OLOROptimWrapperConstructor',),
    MMENGINE_HOOKS: (
        'ConsolidateOptimizerHook',
        'DriftHook',
        'FreezeBackboneHook',
        'ResumableRandomnessHook',
        'SafeCheckpointHook',
        'UpstreamEvalHook',
    ),
}


def imported_when_built(name: str) -> Callable:
    """A stand-in for a class or function of :mod:`olor_mm.engine`, which takes its place once it is imported."""

    def build(*args, **kwargs) -> Any:
        return getattr(import_module(ENGINE), name)(*args, **kwargs)

    build.__name__ = build.__qualname__ = name
    return build


resolve_config_scopes()
for registry in (MMENGINE_OPTIMIZERS, OPTIMIZERS):
    for optimizer in registered().values():
        registry.register_module(module=optimizer)
# parents are not asked for their locations, so that these names have to be in them from the start
for registry, names in OF_ENGINE.items():
    for name in names:
        registry.register_module(module=imported_when_built(name))
