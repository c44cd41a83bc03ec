"""Parameter groups with layer-wise levels, for optimizers that are not built from a config."""

from collections.abc import Callable, Collection, Iterable, Mapping

from torch import Tensor, nn

from ..optim.penalty import SHARE_OF_HEADS, check_budget, layer_budget, layer_penalty
from .index import Layers, layer_index
from .network import networks


def rollback_groups(
    model: nn.Module,
    pretrained: Collection[str] | Mapping[str, Tensor] | None = None,
    max_level: float = 1e-2,
    min_level: float | None = None,
    power: float = 1.0,
    max_drift: float | tuple[float, float] | None = None,
    options: Callable[[str, nn.Parameter], dict] | None = None,
) -> list[dict]:
    """Parameter groups of a model for any optimizer of :mod:`olor_mm.optim`, each layer with its level.

    Args:
        model (nn.Module): A model of torchvision, timm, HuggingFace or one's own.
        pretrained (Mapping[str, Tensor] or Collection[str], optional): The ``state_dict`` that was loaded, or the names
            of the tensors that were; others, and those of another shape than in it, are new and have level 0. Defaults
            to all.
        max_level (float): Level of the layer nearest the input, see :func:`olor_mm.optim.layer_penalty`.
        min_level (float, optional): Level of what comes after the backbone, where it is pre-trained. Defaults to 0.3 of
            ``max_level``, and to 0 if nothing is pre-trained there.
        power (float): How the level falls, or the budget goes, in between.
        max_drift (float or (float, float), optional): Instead of levels, a drift budget, see
            :func:`olor_mm.optim.layer_budget`. Defaults to None.
        options (Callable, optional): From name and parameter to further options of its group, e.g.
            ``lambda name, p: dict(weight_decay=0.0) if p.ndim < 2 else {}``. Defaults to none.

    Returns:
        list[dict]: One group for all parameters with equal options; ``names`` are those of its ``params``.

    Raises:
        ValueError: If a level is out of range, or no parameter has a name of ``pretrained`` and the shape it has there.

    >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    >>> groups = rollback_groups(model, pretrained=['0.weight', '0.bias', '1.weight', '1.bias'], max_level=0.03)
    >>> [(group['names'], round(group['rollback'], 3)) for group in groups]
    [(['0.weight', '0.bias'], 0.03), (['1.weight', '1.bias'], 0.02), (['2.weight', '2.bias'], 0.0)]
    """
    index = layer_index(model)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    names = [*index] if pretrained is None else [*pretrained]
    loaded = pretrained if isinstance(pretrained, Mapping) else {}
    named = shapes.keys() & set(names)
    known = {name for name in named if getattr(loaded.get(name), 'shape', shapes[name]) == shapes[name]}
    if not known:
        fault = (
            'has them in other shapes' if named else f'has no such parameter; its names are like {next(iter(index))!r}'
        )
        raise ValueError(f'pretrained={names[:3]}: the model {fault}')
    if min_level is None:
        min_level = SHARE_OF_HEADS * max_level if known.intersection(after_backbones(model, index)) else 0.0
    if max_drift is not None:
        check_budget('max_drift', max_drift)

    def strength(name: str) -> dict[str, float]:
        if max_drift is None:
            return dict(rollback=layer_penalty(*index[name], max_level, min_level, power) if name in known else 0.0)
        return dict(rollback_drift=layer_budget(*index[name], max_drift, power) if name in known else 0.0)

    return merge(
        dict(params=[p], names=[name], **strength(name), **(options(name, p) if options else {}))
        for name, p in model.named_parameters()
    )


def after_backbones(model: nn.Module, index: Layers) -> list[str]:
    """Names of the parameters after every backbone: of necks and heads, and of the last layer where nothing is one."""
    prefixes = tuple(network.prefix for network in networks(model) if network.is_declared)
    return [name for name, (i, n) in index.items() if i == n and not name.startswith(prefixes)]


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
