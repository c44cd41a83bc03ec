"""The MMEngine side: what configs name, registered in MMEngine's registries and in those of olor_mm."""

from ..compat import mend_fsdp_strategy
from ..registry import HOOKS, OF_ENGINE, OPTIM_WRAPPER_CONSTRUCTORS, OPTIMIZERS
from .checkpoints import SafeCheckpointHook
from .constructor import OLOROptimWrapperConstructor
from .drift import DriftHook
from .hooks import ConsolidateOptimizerHook, FreezeBackboneHook, ResumableRandomnessHook
from .optimizers import OLOR, ZeroRedundancyOptimizerOLOR
from .upstream_eval import UpstreamEvalHook

mend_fsdp_strategy()

for registry in (OPTIMIZERS, OPTIM_WRAPPER_CONSTRUCTORS, HOOKS):
    for name in OF_ENGINE[registry.parent]:
        for place in (registry.parent, registry):
            place.register_module(module=globals()[name], force=True)

__all__ = [
    'OLOR',
    'ConsolidateOptimizerHook',
    'DriftHook',
    'FreezeBackboneHook',
    'OLOROptimWrapperConstructor',
    'ResumableRandomnessHook',
    'SafeCheckpointHook',
    'UpstreamEvalHook',
    'ZeroRedundancyOptimizerOLOR',
]
