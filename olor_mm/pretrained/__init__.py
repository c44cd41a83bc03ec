"""Which parameters and statistics really came out of a checkpoint. Imports torch and nothing of OpenMMLab."""

from .record import LoadRecord, fingerprint
from .statistics import copy_statistics, statistics_states, summary

__all__ = [
    'LoadRecord',
    'copy_statistics',
    'fingerprint',
    'statistics_states',
    'summary',
]
