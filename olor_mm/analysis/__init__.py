"""What fine-tuning did to a model: how far the weights went, and what the old classifier still makes of them."""

from .drift import layer_drift
from .execution import execution_order, order_violations, repeated_blocks
from .matching import match_by_value
from .retention import linear_cka, prediction_agreement, prediction_divergence
from .upstream import restore_statistics, upstream_state
from .wise_ft import interpolate

__all__ = [
    'execution_order',
    'interpolate',
    'layer_drift',
    'linear_cka',
    'match_by_value',
    'order_violations',
    'prediction_agreement',
    'prediction_divergence',
    'repeated_blocks',
    'restore_statistics',
    'upstream_state',
]
