"""From a model to the layer index of its parameters. Imports torch and nothing of OpenMMLab."""

from .index import METHODS, backbones, clean_name, layer_index, names_under

__all__ = ['METHODS', 'backbones', 'clean_name', 'layer_index', 'names_under']
