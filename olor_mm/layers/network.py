"""The networks of a model, each with an input of its own: backbones, two streams, student and teacher."""

import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

from torch import nn
from torch.nn.modules.conv import _ConvNd

from .blocks import find_blocks
from .order import names_in_order

# what models of OpenMMLab call the parts that are pre-trained by themselves, those of images and those of text
BACKBONES = re.compile(r'.*backbone.*|visual|(image|vision|visual|text|language|lang)_(encoder|model|tower)', re.I)
NO_BACKBONE = re.compile(r'.+_(neck|fpn|heads?|norms?|proj\w*|adapters?|fus\w*|convs?|pool\w*|embed\w*)', re.I)
COLOURS = 4  # channels of an image with depth or transparency
WORDS = 1000  # fewer are queries or positions, and no vocabulary


class Network(NamedTuple):
    """A module that ``prefix`` (``'student.backbone.'``) leads to.

    It is declared where its name or its class says that it is a backbone and nothing else. Any other may end in a head.
    """

    prefix: str
    module: nn.Module
    is_declared: bool


def networks(model: nn.Module) -> list[Network]:
    """The networks of a model, in the order of registration; the model as a whole where it has just one input.

    A network is a module that is called a backbone (``img_backbone``, ``backbone_2``, ``language_model``), or whose
    class a package called ``backbones`` exports, as those of OpenMMLab do. So is, whatever its name, a module that
    begins with an image or with words and is deep, if there is another network in the model; and so are twins, student
    and teacher. A module around several networks stands for those.
    """
    return _networks(model, '', inside=False) or _twins(model) or [Network('', model, False)]


def backbones(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The networks of a model that have the name or class of a backbone.

    Args:
        module (nn.Module): A model, or a part of one.

    Yields:
        tuple[str, nn.Module]: Prefix, e.g. ``'backbone.'``, and module; ``''`` and the given module if there is none.
    """
    found = [(network.prefix, network.module) for network in networks(module) if network.is_declared]
    yield from found or [('', module)]


def _networks(module: nn.Module, prefix: str, inside: bool) -> list[Network]:
    """The networks in a module: those within, itself, or none. ``inside``: it is a part of a declared one."""
    is_declared = _has_name(prefix) or (not inside and _has_class(module, prefix))
    inside |= is_declared
    within = [
        network for name, child in module.named_children() for network in _networks(child, f'{prefix}{name}.', inside)
    ]
    declared = [network for network in within if network.is_declared]
    if declared and not inside:  # a short chain next to it may be anything, an encoder of masks for one
        within = [network for network in within if network.is_declared or _is_deep(network.module, weights=8)]
    share = sum(_size(network.module) for network in within)
    if len(within) > 1 and (declared or 2 * share >= _size(module)):  # several that are less are stems of one
        return [network._replace(is_declared=is_declared or network.is_declared) for network in within]
    if is_declared:
        return [Network(prefix, module, True)]
    if declared:
        return declared
    if within or (_starts_at_input(module) and _is_deep(module, weights=0 if inside else 3)):
        return [Network(prefix, module, False)]  # with all that has no input of its own
    return []


def _has_name(prefix: str) -> bool:
    parent, _, name = prefix.rstrip('.').rpartition('.')
    is_stem = 'embed' in parent  # a hybrid's may be a ResNet
    return bool(BACKBONES.fullmatch(name)) and not NO_BACKBONE.fullmatch(name) and not is_stem


def _has_class(module: nn.Module, prefix: str) -> bool:
    """Whether a package called ``backbones`` exports the class, or one that it extends; blocks are not exported."""
    if 'embed' in prefix:
        return False
    for cls in type(module).__mro__:
        package, dot, _ = cls.__module__.partition('.backbones.')
        if dot and getattr(sys.modules.get(f'{package}.backbones'), cls.__name__, None) is cls:
            return _is_deep(module, weights=5)
    return False


def _is_deep(module: nn.Module, weights: int) -> bool:
    """Whether a module has several blocks, or at least so many weights in a plain chain, as VGG; 0 for no chain."""
    return len(find_blocks(module)) > 1 or 0 < weights <= sum(p.ndim > 1 for p in module.parameters())


def _twins(model: nn.Module) -> list[Network]:
    """Parts of one class and shape, such as a student and its teacher, that are most of a model and cannot follow each
    other, as they have another width at the input than at the output."""
    alike: dict[tuple, list[Network]] = {}
    for name, child in model.named_children():
        shapes = [p.shape for p in child.parameters() if p.ndim > 1]
        layers = [layer for layer in child.modules() if isinstance(layer, (nn.Linear, _ConvNd))]
        if len(layers) > 2 and _width(layers[0], 'in') != _width(layers[-1], 'out'):
            alike.setdefault((type(child), *shapes), []).append(Network(f'{name}.', child, False))
    found = [network for several in alike.values() if len(several) > 1 for network in several]
    return found if 2 * sum(_size(network.module) for network in found) >= _size(model) else []


def _width(layer: nn.Module, end: str) -> int:
    return getattr(layer, f'{end}_features' if isinstance(layer, nn.Linear) else f'{end}_channels')


def _starts_at_input(module: nn.Module) -> bool:
    """Whether the first layer of a module takes an image or words, and no features of another module."""
    for name in names_in_order(module):
        layer = module.get_submodule(name.rpartition('.')[0])
        if isinstance(layer, _ConvNd):
            return layer.in_channels <= COLOURS and layer.in_channels < layer.out_channels
        if isinstance(layer, nn.Linear):
            return False
        if isinstance(layer, nn.Embedding) and layer.num_embeddings >= WORDS:
            return True
    return False


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
