"""Which parameters and statistics really came out of a checkpoint. Imports torch and nothing of OpenMMLab."""

from .record import LoadRecord
from .statistics import running_statistics, statistics_states, summary
from .values import fingerprint, fingerprints, is_constant, is_same

__all__ = [
    'LoadRecord',
    'fingerprint',
    'fingerprints',
    'is_constant',
    'is_same',
    'running_statistics',
    'statistics_states',
    'summary',
]
