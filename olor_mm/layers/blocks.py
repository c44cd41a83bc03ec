"""The repeated blocks of a backbone: residual, transformer, inverted residual, ..."""

from torch import nn

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def find_blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks within a module, in the order of registration.

    A block has at least two weights and no series of blocks of one class in it; a module with such a series is a stage
    and stands for the blocks in it.
    """
    return [block for child in module.children() for block in _blocks(child)]


def _blocks(module: nn.Module) -> list[nn.Module]:
    if sum(p.ndim > 1 for p in module.parameters()) < 2:
        return []  # a convolution with its norm, a patch embedding, a norm
    if 'weight' in dict(module.named_parameters(recurse=False)):
        return []  # an operator, as a deformable convolution with the one for its offsets
    inner = find_blocks(module)
    plain_container = type(module).__name__ in ('Sequential', 'ModuleList', 'ModuleDict')
    is_stage = any(_has_series(m, inner) for m in module.modules())
    return inner if plain_container or is_stage else [module]


def _has_series(container: nn.Module, blocks: list[nn.Module]) -> bool:
    if not isinstance(container, CONTAINERS):
        return False
    series = [type(child) for child in container.children() if any(child is block for block in blocks)]
    return len(series) > len(set(series))
