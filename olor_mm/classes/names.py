"""Which class of a new task is which one of an old task, by name."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def class_key(name: str) -> str:
    """How names of classes are compared: without case, hyphens, underscores and white space.

    >>> class_key('Traffic-light') == class_key('traffic light')
    True
    """
    return re.sub(r'[-_\s]+', '', name).casefold() or name


def match_classes(old: Sequence[str], new: Sequence[str], aliases: Mapping[str, str] | None = None) -> list[int | None]:
    """For each of the new classes its index among the old ones, or None.

    Args:
        old (Sequence[str]): Names of the old classes, in their order.
        new (Sequence[str]): Those of the new ones, in theirs.
        aliases (Mapping, optional): Old names of new classes that were called something else, ``{new: old}``.

    Raises:
        ValueError: If names collide, so that it is not clear which class is meant, or if a name in ``aliases`` is that
            of no class. A name that is as often, in the same spelling, among the old classes as among the new ones
            does not: the first is the first then (ImageNet has two cranes).

    >>> match_classes(['person', 'traffic light'], ['Traffic-Light', 'dog'])
    [1, None]
    """
    wanted = [class_key(name) for name in new]
    for alias, name in (aliases or {}).items():
        for side, what, names in ((alias, 'new', new), (name, 'old', old)):
            if class_key(side) not in map(class_key, names):
                raise ValueError(f'aliases={{{alias!r}: {name!r}}}: {side!r} is no {what} class; {_some(names)}')
        for at, other in enumerate(new):
            if class_key(other) == class_key(alias):
                wanted[at] = class_key(name)
    places: dict[str, list[int]] = {}
    for at, name in enumerate(old):
        places.setdefault(class_key(name), []).append(at)
    for key, count in Counter(wanted).items():
        here = [name for name, other in zip(new, wanted, strict=True) if other == key]
        there = [old[at] for at in places.get(key, ())]
        if max(count, len(there)) > 1 and there != here:
            names = f'{here} of the new and {there} of the old classes' if there else f'{here} of the new classes'
            raise ValueError(f'{names} collide: case, -, _ and spaces do not count in them; rename all but one')
    return [places[key].pop(0) if key in places else None for key in wanted]


def joined_classes(old: Sequence[str], new: Sequence[str], aliases: Mapping[str, str] | None = None) -> list[str]:
    """The old classes in their order, then those of the new ones that are not among them, in theirs.

    Raises:
        ValueError: As :func:`match_classes`.

    >>> joined_classes(['person', 'dog'], ['Dog', 'cat'])
    ['person', 'dog', 'cat']
    """
    indices = match_classes(old, new, aliases)
    return [*old, *(name for name, at in zip(new, indices, strict=True) if at is None)]


def checkpoint_classes(checkpoint: Mapping[str, Any]) -> list[str] | None:
    """Names of the classes that a checkpoint of MMEngine or MMCV was trained on, in their order; None if it has none.

    Args:
        checkpoint (Mapping): What is in the file: ``meta.dataset_meta.classes``, or ``meta.CLASSES`` before 3.x.
    """
    meta = checkpoint.get('meta')
    dataset = meta.get('dataset_meta') if isinstance(meta, Mapping) else None
    for place in (dataset, meta):
        for key, value in place.items() if isinstance(place, Mapping) else ():
            if str(key).lower() == 'classes' and value:  # the first releases of 3.x wrote them in capitals too
                return [value] if isinstance(value, str) else [str(name) for name in value]
    return None


def _some(names: Iterable[str]) -> str:
    names = [*names]
    return f'they are {names[:10]}' + (f' and {len(names) - 10} more' if len(names) > 10 else '')
