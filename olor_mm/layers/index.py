"""The layer index (i, n) of every parameter: i = 0 nearest the input, i = n after the backbone."""

from collections.abc import Iterable, Mapping
from numbers import Integral

from torch import nn

from ..names import nearest
from .blocks import find_blocks
from .network import Network, networks
from .order import names_in_order
from .wrappers import clean_name

Layers = dict[str, tuple[int, int]]  # name of a parameter to its (i, n)
#: Ways to number the layers of a model, see :func:`layer_index`.
METHODS = ('block', 'tensor')


def layer_index(model: nn.Module, method: str = 'block', overrides: Mapping[str, int] | None = None) -> Layers:
    """Give every parameter of a model its layer i of n.

    Each of the :func:`networks` of a model is indexed from its own input: its backbone, both of two streams, student
    and teacher, a second backbone in a neck. A model that has none is one as a whole. Everything outside of them (neck,
    encoder and decoder of a DETR, heads) has i = n.

    Args:
        model (nn.Module): A model of OpenMMLab, timm, torchvision or one's own.
        method (str): 'block' counts repeated blocks (residual, transformer, ... ) in the order of the forward pass:
            the stem is 0, the k-th block is k, and n is the number of blocks + 1. Parameters between two blocks belong
            to the second, those after the last one to the last. Where a backbone has mmpretrain's ``get_layer_depth``,
            that is used, unless it gives several blocks one layer or goes back. 'tensor' counts parameter tensors from
            0 to n, as the reference implementation of arXiv 2401.10962 does.
        overrides (Mapping[str, int] or None): Prefix of a parameter's name to its i; the longest prefix wins.

    Returns:
        dict[str, tuple[int, int]]: Name, as in ``model.named_parameters()``, to (i, n), 0 <= i <= n.

    Raises:
        ValueError: If ``method`` is unknown, an override matches no parameter or is not an integer in [0, n].
    """
    if method not in METHODS:
        known = ', '.join(map(repr, METHODS))
        raise ValueError(f'layer_index={method!r} is unknown; take one of {known}, or a dict from prefixes to layers')
    index: Layers = {}
    for network in networks(model):
        index.update(_index_network(network, method))
    deepest = max((n for _, n in index.values()), default=0) or 1
    index = {name: index.get(name, (deepest, deepest)) for name, _ in model.named_parameters()}
    for prefix, layer in sorted((overrides or {}).items(), key=lambda item: len(item[0])):
        for name in names_under(prefix, index, 'layer_index'):
            n = index[name][1]
            if isinstance(layer, bool) or not isinstance(layer, Integral) or not 0 <= layer <= n:
                end = f'n={n} (after the backbone)'
                raise ValueError(f'layer_index[{prefix!r}]={layer!r} is not an integer from 0 (the input) to {end}')
            index[name] = (int(layer), n)
    return index


def _index_network(network: Network, method: str) -> Layers:
    prefix, backbone, is_declared = network
    names = [name for name, _ in backbone.named_parameters()]
    if method == 'tensor':
        return {prefix + name: (i, len(names) - 1) for i, name in enumerate(names)}
    shown = set(names)  # of a shared parameter, its first name alone
    ordered = [name for name in dict.fromkeys(names_in_order(backbone)) if name in shown]
    root = backbone
    while len(inside := list(root.children())) == 1:  # a wrapper, as mmpretrain's of timm
        [root] = inside
    found = set(find_blocks(root))
    blocks = [f'{name}.' for name, module in backbone.named_modules() if module in found]
    block_of = {name: next((block for block in blocks if name.startswith(block)), None) for name in ordered}
    depths = _own_depths(backbone, prefix, block_of) or _block_depths(backbone, block_of, not is_declared)
    return {prefix + name: depths[name] for name in names}


def _own_depths(backbone: nn.Module, prefix: str, block_of: dict[str, str | None]) -> Layers:
    """What the backbone's ``get_layer_depth`` says, if it tells blocks apart and never decreases along the way."""
    depths = _declared_depths(backbone, prefix)
    path = [depths[name][0] for name in block_of if depths]
    layers_of = {(block, i) for block, i in zip(block_of.values(), path) if block is not None}
    one_to_one = len(layers_of) == len({block for block, _ in layers_of}) == len({i for _, i in layers_of})
    return depths if one_to_one and path == sorted(path) else {}


def _declared_depths(backbone: nn.Module, prefix: str) -> Layers:
    """What the backbone's ``get_layer_depth`` says of its parameters; nothing if there is none or it fails."""
    if not hasattr(backbone, 'get_layer_depth'):
        return {}
    try:
        prefix = clean_name(prefix)
        names = [name for name, _ in backbone.named_parameters()]
        depths = {name: backbone.get_layer_depth(prefix + clean_name(name), prefix) for name in names}
    except (NotImplementedError, ValueError, KeyError, IndexError):  # of an architecture its author did not think of
        return {}
    # its `num_layers` counts layers, head included: the head's own i is one less
    return {name: (i, num_layers - 1) for name, (i, num_layers) in depths.items()}


def declared_layers(model: nn.Module) -> Layers:
    """The layers that backbones give their parameters by mmpretrain's ``get_layer_depth``, for its learning rate decay.

    Unlike :func:`layer_index`, as they are: some give several blocks one layer.

    Returns:
        dict[str, tuple[int, int]]: Name to (i, n); only of parameters in a backbone that has it.
    """
    return {
        prefix + name: layer
        for prefix, backbone, _ in networks(model)
        for name, layer in _declared_depths(backbone, prefix).items()
    }


def _block_depths(backbone: nn.Module, block_of: dict[str, str | None], trailing_is_head: bool) -> Layers:
    numbers: dict[str, int] = {}  # of the blocks; the forward pass may leave one and come back to it
    depths: dict[str, int] = {}
    waiting: list[str] = []  # parameters between two blocks, e.g. a downsampling layer, belong to the block they feed
    for name, block in block_of.items():
        if block is None:
            waiting.append(name)
            continue
        depths.update(dict.fromkeys(waiting, len(numbers) + 1 if numbers and block not in numbers else len(numbers)))
        depths[name] = numbers.setdefault(block, len(numbers) + 1)
        waiting = []
    if len(numbers) < 2:  # a plain chain: every weight opens a layer, its bias and norm belong to it
        ndims = {name: p.ndim for name, p in backbone.named_parameters()}
        weights = 0
        for name in block_of:
            weights += ndims[name] > 1
            depths[name] = max(weights - 1, 0)
        return {name: (i, weights) for name, i in depths.items()}
    count = len(numbers)
    depths.update(dict.fromkeys(waiting, count + 1 if trailing_is_head else count))
    first = min(depths.values())  # 1 where the stem is itself built like a block
    return {name: (i - first, count + 1 - first) for name, i in depths.items()}


def names_under(prefix: str, names: Iterable[str], where: str) -> list[str]:
    """The names of a module's parameters: ``backbone.layer1`` has ``backbone.layer1.0.bn.bias`` and no ``layer10``.

    Args:
        prefix (str): Name of a module or parameter, with or without a dot at its end.
        names (Iterable[str]): All names of the model's parameters.
        where (str): The option that has the prefix, for the message.

    Raises:
        ValueError: If there is none; the message says ``where`` the prefix was given and what exists.
    """
    names = list(names)
    prefix = prefix.rstrip('.')
    found = [name for name in names if f'{name}.'.startswith(f'{prefix}.')]
    if not found:
        depth = prefix.count('.') + 1
        near = nearest(prefix, {'.'.join(name.split('.')[:depth]) for name in names})
        tops = ', '.join(sorted({name.partition('.')[0] for name in names}))
        hint = f'did you mean {near[0]!r}?' if near else f'its parts are {tops}; name one, or a part of one'
        raise ValueError(f'{where}: the model has no parameter under {prefix!r}; {hint}')
    return found
