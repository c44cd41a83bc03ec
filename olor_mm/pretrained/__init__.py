"""Which parameters and statistics really came out of a checkpoint. Imports torch and nothing of OpenMMLab."""

from .record import LoadRecord, fingerprint
from .statistics import running_statistics, statistics_states, summary

__all__ = ['LoadRecord', 'fingerprint', 'running_statistics', 'statistics_states', 'summary']
