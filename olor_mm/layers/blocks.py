"""The repeated blocks of a backbone: residual, transformer, inverted residual, ..."""

import re
from collections.abc import Iterator

from torch import nn

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# what libraries call parts that belong to the block they feed, however many weights they have
NO_BLOCK = re.compile(r'.*embed(ding)?s?|downsample.*|transition.*')


def find_blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks in a module, in order: parts with several weights and without a series of such parts of a class."""
    return [block for name, child in module.named_children() for block in _blocks(name, child)]


def main_stages(module: nn.Module) -> list[nn.Module]:
    """The modules after which features of a backbone are compared.

    Args:
        module (nn.Module): A backbone.

    Returns:
        list[nn.Module]: The last block of every series of blocks, in order. Where there is one series, the last block
        of each quarter of it; where there are no blocks, the module.
    """
    names = {child: name for name, child in module.named_modules()}
    series: dict[str, list[nn.Module]] = {}
    for block in find_blocks(module):
        series.setdefault(names[block].rpartition('.')[0], []).append(block)
    if len(series) == 1:
        [blocks] = series.values()
        parts = min(4, len(blocks))
        return [blocks[len(blocks) * i // parts - 1] for i in range(1, parts + 1)]
    return [blocks[-1] for blocks in series.values()] or [module]


def _blocks(name: str, module: nn.Module) -> list[nn.Module]:
    layers = (m for m in module.modules() if not isinstance(m, nn.Embedding))
    is_small = sum(p.ndim > 1 for m in layers for p in m.parameters(recurse=False)) < 2  # a convolution with its norm
    is_operator = 'weight' in dict(module.named_parameters(recurse=False))  # a deformable convolution with its offsets
    if NO_BLOCK.fullmatch(name) or is_small or is_operator:
        return []
    inner = find_blocks(module)
    plain_container = type(module).__name__ in ('Sequential', 'ModuleList', 'ModuleDict')
    is_stage = any(_has_series(m, inner) for m in module.modules())
    return inner if plain_container or is_stage else [module]


def _has_series(module: nn.Module, blocks: list[nn.Module]) -> bool:
    """Whether several blocks of one class are in a list or sequence, or numbered (``b1``, ``b2``) and alone."""
    found = [(name, child) for name, child in _members(module) if any(child is block for block in blocks)]
    kinds = {type(child) for _, child in found}
    if isinstance(module, CONTAINERS):
        return len(found) > len(kinds)
    return len(found) > 1 and len(kinds) == len({re.sub(r'\d+', '', name) for name, _ in found}) == 1


def _members(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        yield name, child
        if isinstance(module, CONTAINERS) and isinstance(child, CONTAINERS):
            yield from _members(child)
