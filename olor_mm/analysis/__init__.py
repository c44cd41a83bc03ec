"""What fine-tuning did to a model: how far the weights went, and what the old classifier still makes of them."""

from .drift import layer_drift
from .retention import prediction_agreement
from .upstream import restore_statistics, upstream_state

__all__ = ['layer_drift', 'prediction_agreement', 'restore_statistics', 'upstream_state']
