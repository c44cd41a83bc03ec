"""From a model to the layers and groups of its parameters. Imports torch and nothing of OpenMMLab."""

from .blocks import main_stages
from .execution import execution_order, order_violations, repeated_blocks
from .groups import rollback_groups
from .index import METHODS, backbones, declared_layers, layer_index, names_under
from .wrappers import clean_name, unwrapped

__all__ = [
    'METHODS',
    'backbones',
    'clean_name',
    'declared_layers',
    'execution_order',
    'layer_index',
    'main_stages',
    'names_under',
    'order_violations',
    'repeated_blocks',
    'rollback_groups',
    'unwrapped',
]
