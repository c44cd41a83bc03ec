"""The MMEngine side: what configs name, registered in MMEngine's registries and in those of olor_mm."""

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import OPTIMIZERS as MMENGINE_OPTIMIZERS

from ..compat import resolve_config_scopes
from ..optim import SGDOLOR, AdamOLOR, AdamWOLOR
from ..registry import HOOKS, OPTIM_WRAPPER_CONSTRUCTORS, OPTIMIZERS
from .constructor import OLOROptimWrapperConstructor
from .hooks import ResumableRandomnessHook

resolve_config_scopes()

for registry in (MMENGINE_OPTIMIZERS, OPTIMIZERS):
    for optimizer in (AdamOLOR, AdamWOLOR, SGDOLOR):
        registry.register_module(module=optimizer)
for registry in (MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPER_CONSTRUCTORS):
    registry.register_module(module=OLOROptimWrapperConstructor)
for registry in (MMENGINE_HOOKS, HOOKS):
    registry.register_module(module=ResumableRandomnessHook)

__all__ = ['SGDOLOR', 'AdamOLOR', 'AdamWOLOR', 'OLOROptimWrapperConstructor', 'ResumableRandomnessHook']
