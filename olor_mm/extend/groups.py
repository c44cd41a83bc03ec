"""Old classes and new ones among those of a data set."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..classes.names import match_classes


def class_groups(classes: Sequence[str], old: Sequence[str], new: Sequence[str] | None = None) -> dict[str, list[int]]:
    """Sorted indices among ``classes`` of the groups 'old' and 'new'.

    Args:
        classes (Sequence[str]): Those of the data set.
        old (Sequence[str]): Those of the old model.
        new (Sequence[str], optional): Those that were added; all others if None.

    Raises:
        ValueError: If a name is that of no class, or names collide.
    """
    groups: dict[str, list[int]] = {}
    for group, names in dict(old=old, new=new).items():
        if isinstance(names, str):
            raise ValueError(f'{group}={names!r} of the metric is not a list of names; write {group}=[{names!r}]')
        found = match_classes(classes, names) if names is not None else []
        if None in found:
            name = (names or [])[found.index(None)]
            raise ValueError(f'{group}: {name!r} is no class of the data set, which has {list(classes)}; correct it')
        groups[group] = sorted(index for index in found if index is not None)
    if new is None:
        groups['new'] = [index for index in range(len(classes)) if index not in groups['old']]
    return groups


def suffixed(values: Mapping[str, Any], group: str) -> dict[str, Any]:
    """The values by their names with the name of a group after each."""
    return {f'{name}_{group}': value for name, value in values.items()}
