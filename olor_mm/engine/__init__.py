"""The MMEngine side: what configs name, registered in MMEngine's registries and in those of olor_mm."""

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import OPTIMIZERS as MMENGINE_OPTIMIZERS

from ..compat import mend_fsdp_strategy, resolve_config_scopes
from ..optim.optimizers import registered
from ..registry import HOOKS, OPTIM_WRAPPER_CONSTRUCTORS, OPTIMIZERS
from .checkpoints import SafeCheckpointHook
from .constructor import OLOROptimWrapperConstructor
from .hooks import ConsolidateOptimizerHook, FreezeBackboneHook, ResumableRandomnessHook
from .optimizers import OLOR, ZeroRedundancyOptimizerOLOR

resolve_config_scopes()
mend_fsdp_strategy()

for registry in (MMENGINE_OPTIMIZERS, OPTIMIZERS):
    for optimizer in (*registered().values(), ZeroRedundancyOptimizerOLOR, OLOR):
        registry.register_module(module=optimizer)
for registry in (MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPER_CONSTRUCTORS):
    registry.register_module(module=OLOROptimWrapperConstructor)
for registry in (MMENGINE_HOOKS, HOOKS):
    for hook in (ConsolidateOptimizerHook, FreezeBackboneHook, ResumableRandomnessHook, SafeCheckpointHook):
        registry.register_module(module=hook)

__all__ = [
    'OLOR',
    'ConsolidateOptimizerHook',
    'FreezeBackboneHook',
    'OLOROptimWrapperConstructor',
    'ResumableRandomnessHook',
    'SafeCheckpointHook',
    'ZeroRedundancyOptimizerOLOR',
]
