"""What fine-tuning did to a model: how far the weights went, and what the old classifier still makes of them."""

from .drift import layer_drift
from .retention import prediction_agreement

__all__ = ['layer_drift', 'prediction_agreement']
