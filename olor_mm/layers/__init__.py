"""From a model to the layers and groups of its parameters. Imports torch and nothing of OpenMMLab."""

from .blocks import main_stages
from .groups import rollback_groups
from .index import METHODS, declared_layers, layer_index, names_under
from .network import backbones, networks
from .wrappers import clean_name, unwrapped

__all__ = [
    'METHODS',
    'backbones',
    'clean_name',
    'declared_layers',
    'layer_index',
    'main_stages',
    'names_under',
    'networks',
    'rollback_groups',
    'unwrapped',
]
