"""What fine-tuning did to a model: how far the weights went, and what the old classifier still makes of them."""

from .drift import layer_drift
from .execution import execution_order, order_violations, repeated_blocks
from .retention import prediction_agreement
from .upstream import restore_statistics, upstream_state
from .wise_ft import interpolate

__all__ = [
    'execution_order',
    'interpolate',
    'layer_drift',
    'order_violations',
    'prediction_agreement',
    'repeated_blocks',
    'restore_statistics',
    'upstream_state',
]
