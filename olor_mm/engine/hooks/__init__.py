"""Hooks for configs, one a file."""

from .consolidation import ConsolidateOptimizerHook
from .drift import DriftHook
from .freezing import FreezeBackboneHook
from .pretrained_eval import PretrainedEvalHook
from .randomness import ResumableRandomnessHook

__all__ = [
    'ConsolidateOptimizerHook',
    'DriftHook',
    'FreezeBackboneHook',
    'PretrainedEvalHook',
    'ResumableRandomnessHook',
]
