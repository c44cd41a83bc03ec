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
    parts = special[0](module) if special else _children_in_order(module)
    for part in parts:
        yield from names_in_order(module.get_submodule(part), f'{prefix}{part}.')
    for name, _ in module.named_parameters():  # what no part has named
        yield prefix + name


def _children_in_order(module: nn.Module) -> list[str]:
    parts = list(dict(module.named_children()))
    lists = [name for name, child in module.named_children() if isinstance(child, nn.ModuleList)]
    stages = [name for name in lists if not NO_BLOCK.fullmatch(name) and find_blocks(module.get_submodule(name))]
    if len(stages) != 1 or stages[0] == 'branches':  # those of HRNet run one after the other
        return sorted(parts, key=_place)
    lengths = {name: len(module.get_submodule(name)) for name in _neighbours(stages[0], parts, lists)}
    count = lengths[stages[0]]
    beside = [name for length in (count, count - 1) for name in lengths if lengths[name] == length]
    norms = [f'norm{i}' for i in _out_indices(module)]
    if norms != [name for name in parts if re.fullmatch(r'norm\d+', name)]:
        norms = []
    steps = []
    for i in range(count):
        steps += _side_by_side(module, beside, i) + [name for name in norms if name == f'norm{i}']
    at = parts.index(stages[0])
    rest = [[part for part in some if part not in (*beside, *steps)] for some in (parts[:at], parts[at:])]
    return sorted([*rest[0], *steps, *rest[1]], key=_place)


def _neighbours(stages: str, parts: list[str], lists: list[str]) -> list[str]:
    """The lists that were registered right before and after the list of stages, with it: they are stepped through."""
    runs = [list(run) for is_list, run in groupby(parts, lambda part: part in lists and part != 'stem') if is_list]
    return next(run for run in runs if stages in run)


def _place(name: str) -> int:
    return -1 if name in FIRST else int(name.startswith('final'))


def _out_indices(module: nn.Module) -> list[int]:
    indices = getattr(module, 'out_indices', ())
    return list(indices) if isinstance(indices, (list, tuple)) else [indices]


def _side_by_side(module: nn.Module, names: list[str], i: int) -> list[str]:
    return [f'{name}.{i}' for name in names if str(i) in dict(module.get_submodule(name).named_children())]


def _bisenet_v1(module: nn.Module) -> list[str]:
    context = 'backbone gap_conv arm32 conv_head32 arm16 conv_head16'
    return [*(f'context_path.{part}' for part in context.split()), 'spatial_path', 'ffm']


def _ddrnet(module: nn.Module) -> list[str]:
    stage_3 = 'context_branch_layers.0 spatial_branch_layers.0 compression_1 down_1'
    stage_4 = 'context_branch_layers.1 spatial_branch_layers.1 compression_2 down_2'
    return f'stem {stage_3} {stage_4} spatial_branch_layers.2 context_branch_layers.2 spp'.split()


def _hourglass(module: nn.Module) -> list[str]:
    lists = ['hourglass_modules', 'out_convs', 'conv1x1s', 'remap_convs', 'inters']
    return ['stem', *(part for i in range(module.num_stacks) for part in _side_by_side(module, lists, i))]


def _icnet(module: nn.Module) -> list[str]:
    backbone = 'backbone.stem backbone.layer1 backbone.layer2 conv_sub2 backbone.layer3 backbone.layer4'
    return f'conv_sub1 {backbone} psp_modules psp_bottleneck conv_sub4'.split()


def _mff_vit(module: nn.Module) -> list[str]:
    projections = dict(zip(module.out_indices[:-1], range(len(module.proj_layers))))
    parts = ['patch_embed']
    for i in range(len(module.layers)):
        parts += [f'layers.{i}'] + ([f'proj_layers.{projections[i]}'] if i in projections else [])
    return parts


def _mvit(module: nn.Module) -> list[str]:
    parts = ['patch_embed']
    for i in range(len(module.blocks)):
        parts += [f'blocks.{i}'] + [f'norm{stage}' for at, stage in module.stage_indices.items() if at == i]
    return [part for part in parts if _has(module, part)]


def _pidnet(module: nn.Module) -> list[str]:
    branches = ['i_branch_layers', 'p_branch_layers', 'd_branch_layers']
    parts = ['stem']
    for i in range(3):
        parts += _side_by_side(module, branches, i) + [f'{name}_{i + 1}' for name in ('compression', 'pag', 'diff')]
    return [part for part in parts if not part.endswith('_3')] + ['spp', 'dfm']


def _stdc_context_path(module: nn.Module) -> list[str]:
    arms = [part for i in range(len(module.arms)) for part in _side_by_side(module, ['arms', 'convs'], i)]
    return ['backbone', 'conv_avg', *arms, 'ffm']


def _twins(module: nn.Module) -> list[str]:
    # of mmseg, mmpretrain, timm
    stages = next(name for name in ('layers', 'stages', 'blocks') if hasattr(module, name))
    encodings = 'pos_block' if hasattr(module, 'pos_block') else 'position_encodings'
    parts = []
    for i in range(len(module.get_submodule(stages))):
        parts += [f'patch_embeds.{i}', f'{stages}.{i}.0', f'{encodings}.{i}', f'{stages}.{i}']
        parts += [name for name in (f'norm_after_stage{i}', f'norm_list.{i}') if _has(module, name)]
    return parts


def _has(module: nn.Module, part: str) -> bool:
    return any(name == part for name, _ in module.named_modules())


def _unet(module: nn.Module) -> list[str]:
    return ['encoder', *(f'decoder.{i}' for i in reversed(range(len(module.decoder))))]


EXECUTION_ORDER: dict[str, Callable[[nn.Module], list[str]]] = {
    'BiSeNetV1': _bisenet_v1,
    'DDRNet': _ddrnet,
    'HourglassNet': _hourglass,
    'ICNet': _icnet,
    'MFFViT': _mff_vit,
    'MViT': _mvit,
    'PCPVT': _twins,
    'PIDNet': _pidnet,
    'STDCContextPathNet': _stdc_context_path,
    'Twins': _twins,
    'UNet': _unet,
}
