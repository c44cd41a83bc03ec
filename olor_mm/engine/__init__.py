"""Rollback for MMEngine: the optim wrapper constructor, optimizers and hooks that configs name."""

from ..registry import ENGINE, register_members
from .constructor import OLOROptimWrapperConstructor
from .fsdp import mend_fsdp_strategy
from .hooks import (
    ClassTransferHook,
    ConsolidateOptimizerHook,
    DriftHook,
    FreezeBackboneHook,
    PretrainedEvalHook,
    PretrainedStatisticsHook,
    ResumableRandomnessHook,
)
from .optimizers import OLOR
from .zero import ZeroRedundancyOptimizerOLOR

mend_fsdp_strategy()

__all__ = [
    'OLOR',
    'ClassTransferHook',
    'ConsolidateOptimizerHook',
    'DriftHook',
    'FreezeBackboneHook',
    'OLOROptimWrapperConstructor',
    'PretrainedEvalHook',
    'PretrainedStatisticsHook',
    'ResumableRandomnessHook',
    'ZeroRedundancyOptimizerOLOR',
]

register_members(ENGINE)
