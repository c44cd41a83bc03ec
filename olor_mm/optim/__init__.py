"""The method, as torch optimizers. Imports torch alone, and numba for the one-pass step on CPU."""

from contextlib import suppress

from .optimizers import (
    ASGDOLOR,
    SGDOLOR,
    AdadeltaOLOR,
    AdagradOLOR,
    AdamaxOLOR,
    AdamOLOR,
    AdamWOLOR,
    NAdamOLOR,
    RAdamOLOR,
    RMSpropOLOR,
    RpropOLOR,
    registered,
    with_rollback,
)
from .penalty import check_levels, layer_budget, layer_penalty
from .rollback import Rollback

with suppress(ImportError):  # torch before 2.5 has neither, torch before 2.9 has no Muon
    from .optimizers import AdafactorOLOR, MuonOLOR  # noqa: F401

__all__ = [
    'ASGDOLOR',
    'SGDOLOR',
    'AdadeltaOLOR',
    'AdagradOLOR',
    'AdamOLOR',
    'AdamWOLOR',
    'AdamaxOLOR',
    'NAdamOLOR',
    'RAdamOLOR',
    'RMSpropOLOR',
    'Rollback',
    'RpropOLOR',
    'check_levels',
    'layer_budget',
    'layer_penalty',
    'registered',
    'with_rollback',
]
