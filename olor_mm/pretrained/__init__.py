"""Which parameters and statistics really came out of a checkpoint. Imports torch and nothing of OpenMMLab."""

from ..optim.anchors import mark_new, new_elements
from .record import LoadRecord
from .statistics import running_statistics, statistics_states, summary
from .values import fingerprint, fingerprints, is_constant, is_same

__all__ = [
    'LoadRecord',
    'fingerprint',
    'fingerprints',
    'is_constant',
    'is_same',
    'mark_new',
    'new_elements',
    'running_statistics',
    'statistics_states',
    'summary',
]
