"""The method, as torch optimizers. Imports torch and nothing of OpenMMLab."""

from .optimizers import SGDOLOR, AdamOLOR, AdamWOLOR, with_rollback
from .penalty import check_levels, layer_penalty
from .rollback import Rollback

__all__ = ['SGDOLOR', 'AdamOLOR', 'AdamWOLOR', 'Rollback', 'check_levels', 'layer_penalty', 'with_rollback']
