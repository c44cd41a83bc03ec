"""Classes of a head by name: which rows of a trained head a model of other classes keeps. Imports torch alone."""

from .names import checkpoint_classes, class_key, joined_classes, match_classes
from .transfer import HeadClasses, TransferReport, transfer_classes

__all__ = [
    'HeadClasses',
    'TransferReport',
    'checkpoint_classes',
    'class_key',
    'joined_classes',
    'match_classes',
    'transfer_classes',
]
