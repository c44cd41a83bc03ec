"""Matches the tensors of two models by value."""

from collections.abc import Callable, Iterable

from torch import nn

from ..pretrained import fingerprint


def match_by_value(
    pretrained: nn.Module, model: nn.Module, prefix: str = '', keep: Iterable[str] = ()
) -> dict[str, str]:
    """Find the tensors of a pre-trained model in a model that starts from its weights, whatever their names are.

    Two parameters match if they have one shape and are equal bit for bit. Ties, such as zero biases, go first to the
    module that another parameter matched, then to the same name, then by order. Buffers follow the parameters of their
    module.

    Args:
        pretrained (nn.Module): The pre-trained model.
        model (nn.Module): The model to search, before it is trained.
        prefix (str): Where in ``model`` to search, e.g. ``'backbone.'``. Defaults to all of it.
        keep (Iterable[str]): Prefixes in ``pretrained`` that are left out, e.g. ``['head']``.

    Returns:
        dict[str, str]: Name of a parameter or buffer of ``pretrained`` to its name in ``model``.
    """
    kept = tuple(f'{part}.' for part in keep)
    groups: dict[tuple, tuple[list[str], list[str]]] = {}
    for name, p in pretrained.named_parameters():
        if not f'{name}.'.startswith(kept):
            groups.setdefault((p.shape, fingerprint(p)), ([], []))[0].append(name)
    for name, p in model.named_parameters():
        if name.startswith(prefix) and (group := groups.get((p.shape, fingerprint(p)))):
            group[1].append(name)
    found = {theirs[0]: ours[0] for theirs, ours in groups.values() if len(theirs) == len(ours) == 1}
    ties = [group for group in groups.values() if max(map(len, group)) > 1]
    modules = {_parent(theirs): _parent(ours) for theirs, ours in found.items()}
    rules: list[Callable[[str, str], bool]] = [
        lambda theirs, ours: modules.get(_parent(theirs)) == _parent(ours) and _leaf(theirs) == _leaf(ours),
        lambda theirs, ours: f'.{theirs}'.endswith(f'.{ours}') or f'.{ours}'.endswith(f'.{theirs}'),
        lambda theirs, ours: True,
    ]
    for is_same in rules:
        for several, left in ties:
            for theirs in several:
                ours = next((name for name in left if is_same(theirs, name)), None)
                if theirs not in found and ours is not None:
                    found[theirs] = ours
                    left.remove(ours)
    modules = {_parent(theirs): _parent(ours) for theirs, ours in found.items()}
    buffers = dict(model.named_buffers())
    for name, buffer in pretrained.named_buffers():
        ours = f'{modules[_parent(name)]}.{_leaf(name)}'.lstrip('.') if _parent(name) in modules else None
        if ours is not None and ours in buffers and buffers[ours].shape == buffer.shape:
            found[name] = ours
    return found


def _parent(name: str) -> str:
    return name.rpartition('.')[0]


def _leaf(name: str) -> str:
    return name.rpartition('.')[2]
