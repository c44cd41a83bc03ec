"""Which layer of a model a parameter belongs to. Imports torch and nothing of OpenMMLab."""

from .index import METHODS, layer_index, names_under

__all__ = ['METHODS', 'layer_index', 'names_under']
