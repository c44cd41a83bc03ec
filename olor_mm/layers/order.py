"""The parameters of a backbone in the order in which its forward pass comes to them, told from its structure alone."""

import re
from collections.abc import Callable, Iterator
from itertools import groupby

from torch import nn

from .blocks import NO_BLOCK, find_blocks

FIRST = ('pre_norm', 'ln_pre', 'pre_layrnorm')  # CLIP's norm before the blocks, as libraries call it


def names_in_order(module: nn.Module, prefix: str = '') -> Iterator[str]:
    """Names of a module's parameters, those that its forward pass comes to first in front; may repeat some.

    It is the order of registration, but for these: lists as long as the list of stages beside them, or one shorter, run
    side by side with it (``downsample_layers`` with ``stages``); where ``out_indices`` has 2, ``norm2`` comes after
    stage 2 of such a list; ``final_conv`` comes last in its module, ``pre_norm`` first; the backbones in
    :data:`EXECUTION_ORDER` have their own.
    """
    for name, _ in module.named_parameters(recurse=False):
        yield prefix + name
    special = [EXECUTION_ORDER[cls.__name__] for cls in type(module).__mro__ if cls.__name__ in EXECUTION_ORDER]
    parts = special[0](module).split() if special else _children_in_order(module)
    modules = dict(module.named_modules(remove_duplicate=False))
    for part in parts:
        if part in modules:
            yield from names_in_order(modules[part], f'{prefix}{part}.')
    for name, _ in module.named_parameters():  # what no part has named
        yield prefix + name


def _children_in_order(module: nn.Module) -> list[str]:
    parts = list(dict(module.named_children()))
    lists = [name for name, child in module.named_children() if isinstance(child, nn.ModuleList)]
    stages = [name for name in lists if not NO_BLOCK.fullmatch(name) and find_blocks(module.get_submodule(name))]
    if len(stages) != 1 or stages[0] == 'branches':  # those of HRNet run one after the other
        return sorted(parts, key=_place)
    # lists that were registered right before and after the list of stages are stepped through with it
    runs = [list(run) for is_list, run in groupby(parts, lambda part: part in lists and part != 'stem') if is_list]
    lengths = {name: len(module.get_submodule(name)) for name in next(run for run in runs if stages[0] in run)}
    count = lengths[stages[0]]
    beside = [name for length in (count, count - 1) for name in lengths if lengths[name] == length]
    steps = [f'{name}.#' for name in beside]
    indices = getattr(module, 'out_indices', ())
    norms = [f'norm{i}' for i in (indices if isinstance(indices, (list, tuple)) else [indices])]
    if norms == [name for name in parts if re.fullmatch(r'norm\d+', name)]:
        steps.append('norm#')
    in_steps = _numbered(' '.join(steps), count).split()
    at = parts.index(stages[0])
    before, after = ([part for part in some if part not in (*beside, *in_steps)] for some in (parts[:at], parts[at:]))
    return sorted([*before, *in_steps, *after], key=_place)


def _place(name: str) -> int:
    return -1 if name in FIRST else int(name.startswith('final'))


def _numbered(parts: str, count: int) -> str:
    """Parts such as 'arms.# convs.#', number after number."""
    return ' '.join(parts.replace('#', str(i)) for i in range(count))


def _twins(module: nn.Module) -> str:
    stages = next(name for name in ('layers', 'stages', 'blocks') if hasattr(module, name))  # mmseg, mmpretrain, timm
    step = f'patch_embeds.# {stages}.#.0 position_encodings.# pos_block.# {stages}.# norm_after_stage# norm_list.#'
    return _numbered(step, len(module.patch_embeds))


def _vit_with(names: dict[int, str], blocks: str, count: int) -> str:
    """Blocks, each with the part that comes after it."""
    return 'patch_embed ' + ' '.join(f'{blocks}.{i} {names.get(i, "")}' for i in range(count))


# by class, from the backbone to the names of its parts; those that a variant lacks are passed over
EXECUTION_ORDER: dict[str, Callable[[nn.Module], str]] = {
    'BiSeNetV1': lambda _: (
        'context_path.backbone context_path.gap_conv context_path.arm32 context_path.conv_head32 context_path.arm16 '
        'context_path.conv_head16 spatial_path ffm'
    ),
    'DDRNet': lambda _: (
        'stem context_branch_layers.0 spatial_branch_layers.0 compression_1 down_1 context_branch_layers.1 '
        'spatial_branch_layers.1 compression_2 down_2 spatial_branch_layers.2 context_branch_layers.2 spp'
    ),
    'HourglassNet': lambda module: (
        'stem ' + _numbered('hourglass_modules.# out_convs.# conv1x1s.# remap_convs.# inters.#', module.num_stacks)
    ),
    'ICNet': lambda _: (
        'conv_sub1 backbone.stem backbone.layer1 backbone.layer2 conv_sub2 backbone.layer3 backbone.layer4 '
        'psp_modules psp_bottleneck conv_sub4'
    ),
    'MFFViT': lambda module: _vit_with(
        {at: f'proj_layers.{i}' for i, at in enumerate(module.out_indices)}, 'layers', len(module.layers)
    ),
    'MViT': lambda module: _vit_with(
        {at: f'norm{stage}' for at, stage in module.stage_indices.items()}, 'blocks', len(module.blocks)
    ),
    'PCPVT': _twins,
    'PIDNet': lambda _: (
        'stem '
        + _numbered('compression_# pag_# diff_# i_branch_layers.# p_branch_layers.# d_branch_layers.#', 3)
        + ' spp dfm'
    ),
    'STDCContextPathNet': lambda module: 'backbone conv_avg ' + _numbered('arms.# convs.#', len(module.arms)) + ' ffm',
    'Twins': _twins,
    'UNet': lambda module: 'encoder ' + ' '.join(f'decoder.{i}' for i in reversed(range(len(module.decoder)))),
}
