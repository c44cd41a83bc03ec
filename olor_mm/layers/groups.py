"""Parameter groups with layer-wise levels, for optimizers that are not built from a config."""

from collections.abc import Callable, Collection, Iterable

from torch import nn

from ..optim.penalty import layer_penalty
from .index import layer_index


def rollback_groups(
    model: nn.Module,
    pretrained: Collection[str] | None = None,
    max_level: float = 1e-2,
    min_level: float = 0.0,
    power: float = 1.0,
    options: Callable[[str, nn.Parameter], dict] | None = None,
) -> list[dict]:
    """Parameter groups of a model for any optimizer of :mod:`olor_mm.optim`, each layer with its level.

    Args:
        model (nn.Module): A model of torchvision, timm, HuggingFace or one's own.
        pretrained (Collection[str], optional): Names of the tensors that were loaded, e.g. the ``state_dict`` that
            was; others are new and have level 0. Defaults to all.
        max_level (float): Level of the layer nearest the input, see :func:`olor_mm.optim.layer_penalty`.
        min_level (float): Level of what comes after the backbone, where it is pre-trained.
        power (float): How the level falls in between.
        options (Callable, optional): From name and parameter to further options of its group, e.g.
            ``lambda name, p: dict(weight_decay=0.0) if p.ndim < 2 else {}``. Defaults to none.

    Returns:
        list[dict]: One group for all parameters with equal options; ``names`` are those of its ``params``.

    Raises:
        ValueError: If a level is out of range or no parameter has a name of ``pretrained``.

    >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    >>> groups = rollback_groups(model, pretrained=['0.weight', '0.bias', '1.weight', '1.bias'], max_level=0.03)
    >>> [(group['names'], round(group['rollback'], 3)) for group in groups]
    [(['0.weight', '0.bias'], 0.03), (['1.weight', '1.bias'], 0.02), (['2.weight', '2.bias'], 0.0)]
    """
    index = layer_index(model)
    names = [*index] if pretrained is None else [*pretrained]
    known = index.keys() & set(names)
    if not known:
        like = next(iter(index))
        raise ValueError(f'pretrained={names[:3]}: the model has no such parameter; its names are like {like!r}')
    return merge(
        dict(
            params=[p],
            names=[name],
            rollback=layer_penalty(*index[name], max_level, min_level, power) if name in known else 0.0,
            **(options(name, p) if options else {}),
        )
        for name, p in model.named_parameters()
    )


def merge(groups: Iterable[dict]) -> list[dict]:
    """One group for all parameters with equal options; joins ``params`` and, where there are such, ``names``."""
    merged: dict[str, dict] = {}
    for group in groups:
        lists = {key: group[key] for key in ('params', 'names') if key in group}
        options = {key: value for key, value in group.items() if key not in lists}
        into = merged.setdefault(repr(sorted(options.items())), {**{key: [] for key in lists}, **options})
        for key, members in lists.items():
            into[key] += members
    return list(merged.values())
