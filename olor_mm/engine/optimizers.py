"""From the ``type`` of a config to an optimizer class with rollback."""

from collections.abc import Callable, Mapping

from mmengine.registry import OPTIMIZERS

from ..names import nearest
from ..optim import Rollback, registered, with_rollback
from .settings import as_dict


def is_named(given: str | type | None, target: str | Callable) -> bool:
    """Whether a ``type`` of a config means this class or function, with or without the scope before it."""
    names = [t.rpartition('.')[2] if isinstance(t, str) else getattr(t, '__name__', None) for t in (given, target)]
    return given is not None and names[0] == names[1]


def rollback_class(base: str | type | None, where: str) -> type:
    """The OLOR version of an optimizer that is given, at the key ``where`` of a config, by name or class."""
    found = base
    if isinstance(base, str):
        found = _found(base) or _found(base.removesuffix('OLOR'))
        if not found:
            near = nearest(base.rpartition('.')[2], [*registered(), *OPTIMIZERS.module_dict])
            raise ValueError(f'{where}={base!r}: there is no such optimizer; take {near[0] if near else "AdamW"!r}')
    try:
        return with_rollback(found)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}={base!r}: {error}; take another, e.g. 'AdamW'") from error


def _found(name: str) -> type | None:
    try:
        with OPTIMIZERS.switch_scope_and_registry(None) as registry:
            return registry.get(name)
    except Exception:  # names with dots are looked for as modules, which fails in many ways
        return None


def flat_cfg(cfg: Mapping) -> dict:
    """``dict(type='OLOR', base=dict(type='Lion', lr=1e-4), rollback=0.01)`` as the config of one optimizer."""
    base = as_dict(cfg.get('base'), 'optimizer.base', "dict(type='Lion', lr=1e-4)")
    options = {key: value for key, value in cfg.items() if key not in ('type', 'base')}
    for key in options.keys() & base.keys():
        raise ValueError(f'optimizer.{key}={options[key]!r} and optimizer.base.{key}={base[key]!r}: keep one of them')
    return {**base, **options}


def OLOR(params, base: dict, **options) -> Rollback:
    """The OLOR version of any optimizer that MMEngine has registered, its own and those of other packages.

    Args:
        params: Parameters or parameter groups.
        base (dict): Config of the optimizer, with its ``type``.
        **options: Arguments of :class:`olor_mm.optim.Rollback`, e.g. ``rollback``.

    Raises:
        ValueError: If there is no such optimizer or rollback has no meaning for it.

    Example:
        >>> optim_wrapper = dict(
        ...     constructor='OLOROptimWrapperConstructor',
        ...     optimizer=dict(type='OLOR', base=dict(type='Lion', lr=1e-4, weight_decay=0.1)),
        ...     paramwise_cfg=dict(rollback=dict(max_level=1e-2)))
    """
    cfg = flat_cfg(dict(type='OLOR', base=base, **options))
    return rollback_class(cfg.pop('type', None), 'optimizer.base.type')(params, **cfg)
