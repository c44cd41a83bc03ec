"""Hooks for configs, one a file."""

from .class_transfer import ClassTransferHook
from .consolidation import ConsolidateOptimizerHook
from .drift import DriftHook
from .freezing import FreezeBackboneHook
from .pretrained_eval import PretrainedEvalHook
from .pretrained_statistics import PretrainedStatisticsHook
from .randomness import ResumableRandomnessHook

__all__ = [
    'ClassTransferHook',
    'ConsolidateOptimizerHook',
    'DriftHook',
    'FreezeBackboneHook',
    'PretrainedEvalHook',
    'PretrainedStatisticsHook',
    'ResumableRandomnessHook',
]
