"""The method, as torch optimizers. Imports nothing of OpenMMLab."""

from .optimizers import registered, with_rollback
from .penalty import check_levels, layer_penalty
from .rollback import Rollback

globals().update(registered())  # AdamOLOR, AdamWOLOR, SGDOLOR, NAdamOLOR, ...: one for each optimizer of torch
__all__ = ['Rollback', 'check_levels', 'layer_penalty', 'registered', 'with_rollback', *registered()]
