"""The repeated blocks of a backbone: residual, transformer, inverted residual, ..."""

import re
from collections.abc import Iterator

from torch import nn

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


# by what libraries call these parts, which belong to the block they feed however many weights they have
NO_BLOCK = re.compile(r'.*embed(ding)?s?|downsample.*|transition.*')


def find_blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks within a module, in the order of registration.

    A block has at least two weights and no series of blocks of one class in it; a module with such a series is a stage
    and stands for the blocks in it.
    """
    return [block for name, child in module.named_children() for block in _blocks(name, child)]


def main_stages(module: nn.Module) -> list[nn.Module]:
    """The last block of every series of blocks; of four parts of it if there is one; the module if it has no blocks."""
    names = {id(child): name for name, child in module.named_modules()}
    series: dict[str, list[nn.Module]] = {}
    for block in find_blocks(module):
        series.setdefault(names[id(block)].rpartition('.')[0], []).append(block)
    if len(series) == 1:
        [blocks] = series.values()
        parts = min(4, len(blocks))
        return [blocks[len(blocks) * (i + 1) // parts - 1] for i in range(parts)]
    return [blocks[-1] for blocks in series.values()] or [module]


def _blocks(name: str, module: nn.Module) -> list[nn.Module]:
    if NO_BLOCK.fullmatch(name) or _count_weights(module) < 2:
        return []  # also a convolution with its norm
    if 'weight' in dict(module.named_parameters(recurse=False)):
        return []  # an operator, as a deformable convolution with the one for its offsets
    inner = find_blocks(module)
    plain_container = type(module).__name__ in ('Sequential', 'ModuleList', 'ModuleDict')
    is_stage = any(_has_series(m, inner) for m in module.modules())
    return inner if plain_container or is_stage else [module]


def _count_weights(module: nn.Module) -> int:
    layers = (m for m in module.modules() if not isinstance(m, nn.Embedding))
    return sum(p.ndim > 1 for m in layers for p in m.parameters(recurse=False))


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
