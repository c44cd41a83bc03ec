"""Measures of what fine-tuning did to a model: drift of its weights, and what it still knows. Needs torch alone."""

from .drift import layer_drift
from .matching import match_and_ties, match_by_value
from .restoring import pretrained_state, restore_statistics
from .retention import linear_cka, prediction_agreement, prediction_divergence
from .wise_ft import interpolate

__all__ = [
    'interpolate',
    'layer_drift',
    'linear_cka',
    'match_and_ties',
    'match_by_value',
    'prediction_agreement',
    'prediction_divergence',
    'pretrained_state',
    'restore_statistics',
]
