"""Checkpoints that survive crashes, full disks and damage, and are read as plain data."""

from ..registry import DURABLE, register_members
from .checkpoints import SafeCheckpointHook
from .loading import CheckpointError, guard_loading, load, load_weights, save_weights

__all__ = ['CheckpointError', 'SafeCheckpointHook', 'guard_loading', 'load', 'load_weights', 'save_weights']

register_members(DURABLE)
