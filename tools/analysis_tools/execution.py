"""Checks a layer index against a forward pass, independently of how the index was made."""

from collections.abc import Mapping

import torch
from torch import nn


def execution_order(module: nn.Module, *inputs) -> list[str]:
    """Names of a module's parameters in the order in which a forward pass first calls the modules that hold them.

    Args:
        module (nn.Module): For example a backbone, in eval mode; on the 'meta' device the pass costs nothing.
        *inputs: Arguments of its forward, usually images of shape (N, C, H, W).

    Returns:
        list[str]: Without the parameters of modules that were not called; shared ones have their first name.
    """
    names = {p: name for name, p in module.named_parameters()}
    called: dict[str, None] = {}

    def note(child: nn.Module, _) -> None:
        called.update(dict.fromkeys(names[p] for p in child.parameters(recurse=False)))

    handles = [child.register_forward_pre_hook(note) for child in module.modules()]
    try:
        with torch.no_grad():
            module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return list(called)


def repeated_blocks(module: nn.Module) -> list[str]:
    """Names of the repeated blocks: members of one list or sequence with the same class and two or more weights each.

    Of nested blocks, the innermost count. A list or a sequence is no block, nor is a module with its own ``weight``,
    such as a convolution that predicts its offsets.
    """
    names = {child: name for name, child in module.named_modules()}
    containers = (nn.Sequential, nn.ModuleList)
    blocks: list[str] = []
    for container in names:
        if isinstance(container, containers):
            members = [
                child
                for child in container.children()
                if type(child).__name__ not in ('Sequential', 'ModuleList')
                and sum(p.ndim > 1 for p in child.parameters()) > 1
                and not hasattr(child, 'weight')
            ]
            kinds = [type(member) for member in members]
            blocks += [names[member] for member in members if kinds.count(type(member)) > 1]
    return [block for block in blocks if not any(other.startswith(f'{block}.') for other in blocks)]


def order_violations(
    module: nn.Module, index: Mapping[str, tuple[int, int]], executed: list[str], prefix: str = ''
) -> list[str]:
    """Violations of a layer index: it decreases along a forward pass, or repeated blocks do not have one layer each.

    Args:
        module (nn.Module): The backbone.
        index (Mapping[str, tuple[int, int]]): Parameter name to (i, n), from :func:`olor_mm.layers.layer_index`.
        executed (list[str]): The names in the order of :func:`execution_order`.
        prefix (str): What ``index`` has before the names of the module, e.g. ``'backbone.'``.

    Returns:
        list[str]: One sentence for each violation; empty if there is none.
    """
    violations = []
    deepest, where = -1, ''
    for name in executed:
        i = index[prefix + name][0]
        if i < deepest:
            violations.append(f'{name} has layer {i} and comes after {where} with layer {deepest}')
        else:
            deepest, where = i, name
    owner: dict[int, str] = {}
    for block in repeated_blocks(module):
        layers = {index[prefix + name][0] for name in executed if name.startswith(f'{block}.')}
        if len(layers) > 1:
            violations.append(f'block {block} has the layers {sorted(layers)}')
        violations += [f'blocks {owner[i]} and {block} share layer {i}' for i in layers if i in owner]
        owner.update(dict.fromkeys(layers, block))
    return violations
