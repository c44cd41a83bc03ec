"""Which parameters and statistics really came out of a checkpoint, and reading one. Imports nothing of OpenMMLab."""

from .files import plain, read_checkpoint
from .record import LoadRecord, fingerprint
from .statistics import copy_statistics, statistics_states, summary

__all__ = [
    'LoadRecord',
    'copy_statistics',
    'fingerprint',
    'plain',
    'read_checkpoint',
    'statistics_states',
    'summary',
]
