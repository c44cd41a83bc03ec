"""Which parameters really came out of a checkpoint. Imports torch and nothing of OpenMMLab."""

from .record import LoadRecord

__all__ = ['LoadRecord']
