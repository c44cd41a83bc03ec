"""Matches the tensors of two models by value."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from torch import nn

from ..layers import networks
from ..pretrained import fingerprint

Tied = dict[str, list[str]]  # the names of the same value in the model to search, by name in the pre-trained one


class Match(NamedTuple):
    """``names`` as from :func:`match_by_value`. ``ties``: part of the model to the other parts that match as well."""

    names: dict[str, str]
    ties: dict[str, list[str]]


def match_by_value(
    pretrained: nn.Module, model: nn.Module, prefix: str = '', keep: Iterable[str] = ()
) -> dict[str, str]:
    """Find the tensors of a pre-trained model in a model that starts from its weights, whatever their names are.

    Two parameters match if they have one shape and are equal bit for bit. Where several networks of the model have the
    same values, one that is trained goes before one that is not (a teacher, a moving average), then the one with most
    of them, then the first. Ties within, such as zero biases, go first to the module that another parameter matched,
    then to the same name, then by order. Buffers follow the parameters of their module.

    Args:
        pretrained (nn.Module): The pre-trained model.
        model (nn.Module): The model to search, before it is trained.
        prefix (str): Where in ``model`` to search, e.g. ``'backbone.'``. Defaults to all of it.
        keep (Iterable[str]): Prefixes in ``pretrained`` that are left out, e.g. ``['head']``.

    Returns:
        dict[str, str]: Name of a parameter or buffer of ``pretrained`` to its name in ``model``.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    return match_and_ties(pretrained, model, prefix, keep, trained).names


def match_and_ties(
    pretrained: nn.Module, model: nn.Module, prefix: str, keep: Iterable[str], trained: Collection[nn.Parameter]
) -> Match:
    """As :func:`match_by_value`, and which parts of the model match as well.

    Args:
        pretrained, model, prefix, keep: As there.
        trained (Collection[nn.Parameter]): What is trained; a network of these goes before one of others.

    Returns:
        Match: ``names``, and ``ties``: part of the model to the other parts that match as well.
    """
    kept = tuple(f'{part}.' for part in keep)
    groups: dict[tuple, tuple[list[str], list[str]]] = {}
    is_constant: dict[str, bool] = {}
    for name, p in pretrained.named_parameters():
        if not f'{name}.'.startswith(kept):
            groups.setdefault((p.shape, fingerprint(p)), ([], []))[0].append(name)
            is_constant[name] = bool((p == p.flatten()[:1]).all())
    for name, p in model.named_parameters():
        if name.startswith(prefix) and (group := groups.get((p.shape, fingerprint(p)))):
            group[1].append(name)
    distinct = {theirs[0]: ours for theirs, ours in groups.values() if len(theirs) == 1 and not is_constant[theirs[0]]}
    place_of = _places(model)
    ranks = _ranks(distinct, place_of, {name for name, p in model.named_parameters() if p in set(trained)})
    for _, ours in groups.values():
        ours.sort(key=lambda name: ranks.get(place_of[name], len(ranks)))
    found = {theirs: ours[0] for theirs, ours in distinct.items() if ours}
    found.update({theirs[0]: ours[0] for theirs, ours in groups.values() if len(theirs) == len(ours) == 1})
    ties = _ties(found, distinct, place_of)
    _settle(found, [(theirs, ours) for theirs, ours in groups.values() if max(len(theirs), len(ours)) > 1])
    found.update(_buffers(pretrained, model, found))
    return Match(found, ties)


def _places(model: nn.Module) -> dict[str, str]:
    """Name of a parameter to the network that it is in, or to the outermost module."""
    prefixes = [network.prefix for network in networks(model) if network.prefix]
    return {
        name: next((prefix for prefix in prefixes if name.startswith(prefix)), f'{name.partition(".")[0]}.')
        for name, _ in model.named_parameters()
    }


def _ranks(distinct: Tied, place_of: dict[str, str], trained: set[str]) -> dict[str, int]:
    """Where to look first: what is trained, then what has most of the values, then what comes first."""
    names = [name for ours in distinct.values() for name in ours]
    counts = Counter(place_of[name] for name in names)
    moving = {place_of[name] for name in names if name in trained}
    order = {place: i for i, place in enumerate(dict.fromkeys(place_of.values()))}
    places = sorted(counts, key=lambda place: (place not in moving, -counts[place], order[place]))
    return {place: rank for rank, place in enumerate(places)}


def _ties(found: dict[str, str], distinct: Tied, place_of: dict[str, str]) -> dict[str, list[str]]:
    """Places that were taken, to the others that have at least half of the values found there."""
    taken = Counter(place_of[found[theirs]] for theirs, ours in distinct.items() if ours)
    both: Counter[tuple[str, str]] = Counter()
    for theirs, ours in distinct.items():
        both.update({(place_of[found[theirs]], place_of[name]) for name in ours})
    ties: dict[str, list[str]] = {}
    for (place, other), count in both.items():
        if place != other and 2 * count >= taken[place]:
            ties.setdefault(place, []).append(other)
    return ties


def _settle(found: dict[str, str], ties: list[tuple[list[str], list[str]]]) -> None:
    """Match what is tied, by the modules of what is found, then by name, then by order."""
    modules = {_parent(theirs): _parent(ours) for theirs, ours in found.items()}
    rules: list[Callable[[str, str], bool]] = [
        lambda theirs, ours: modules.get(_parent(theirs)) == _parent(ours) and _leaf(theirs) == _leaf(ours),
        lambda theirs, ours: f'.{theirs}'.endswith(f'.{ours}') or f'.{ours}'.endswith(f'.{theirs}'),
        lambda theirs, ours: True,
    ]
    used = set(found.values())
    for is_same in rules:
        for several, left in ties:
            for theirs in several:
                ours = next((name for name in left if name not in used and is_same(theirs, name)), None)
                if theirs not in found and ours is not None:
                    found[theirs] = ours
                    used.add(ours)


def _buffers(pretrained: nn.Module, model: nn.Module, found: dict[str, str]) -> dict[str, str]:
    modules = {_parent(theirs): _parent(ours) for theirs, ours in found.items()}
    buffers = dict(model.named_buffers())
    matched = {}
    for name, buffer in pretrained.named_buffers():
        ours = f'{modules[_parent(name)]}.{_leaf(name)}'.lstrip('.') if _parent(name) in modules else None
        if ours is not None and ours in buffers and buffers[ours].shape == buffer.shape:
            matched[name] = ours
    return matched


def _parent(name: str) -> str:
    return name.rpartition('.')[0]


def _leaf(name: str) -> str:
    return name.rpartition('.')[2]
