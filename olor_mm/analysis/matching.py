"""Which tensor of one model is which of another, whatever they are called."""

from collections.abc import Callable, Iterable

from torch import nn

from ..pretrained import fingerprint


def match_by_value(upstream: nn.Module, model: nn.Module, prefix: str = '', keep: Iterable[str] = ()) -> dict[str, str]:
    """Find the parts of a pre-trained model in one that was just started from it: by their values, not their names.

    Parameters of one shape whose elements are equal bit for bit are the same. Where several are, as zero biases, those
    go together whose modules do by another parameter, then those with one name, then in order. Running statistics and
    other buffers go with the parameters of their module.

    Args:
        upstream (nn.Module): The pre-trained model.
        model (nn.Module): The other one, before it is trained.
        prefix (str): Where in ``model`` to look, e.g. ``'backbone.'``. Defaults to all of it.
        keep (Iterable[str]): Prefixes in ``upstream`` of what is not looked for, e.g. ``['head']``.

    Returns:
        dict[str, str]: Name of a parameter or buffer of ``upstream`` to its name in ``model``.
    """
    kept = tuple(f'{part}.' for part in keep)
    groups: dict[tuple, tuple[list[str], list[str]]] = {}
    for name, p in upstream.named_parameters():
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
    for name, buffer in upstream.named_buffers():
        ours = f'{modules[_parent(name)]}.{_leaf(name)}'.lstrip('.') if _parent(name) in modules else None
        if ours is not None and ours in buffers and buffers[ours].shape == buffer.shape:
            found[name] = ours
    return found


def _parent(name: str) -> str:
    return name.rpartition('.')[0]


def _leaf(name: str) -> str:
    return name.rpartition('.')[2]
