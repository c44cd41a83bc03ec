"""Optimizers that only OpenMMLab has: those it registers from other packages, and its ZeRO."""

from collections.abc import Callable, Mapping

import torch
from mmengine.optim import OptimWrapper, ZeroRedundancyOptimizer
from mmengine.registry import OPTIM_WRAPPERS, OPTIMIZERS, Registry

from ..names import nearest
from ..optim import Rollback, with_rollback
from ..optim.optimizers import registered
from ..optim.state import check_loadable, sealed, settle_options
from .settings import as_dict


def is_named(given: str | type | None, target: str | Callable) -> bool:
    """Whether a ``type`` of a config means this class or function, with or without the scope before it."""
    names = [t.rpartition('.')[2] if isinstance(t, str) else getattr(t, '__name__', None) for t in (given, target)]
    return given is not None and names[0] == names[1]


def rollback_class(base: str | type, where: str) -> type:
    """The OLOR version of an optimizer that is given as in a config.

    Args:
        base (str or type): Name in MMEngine's registry, e.g. ``'AdamW'``, or a class.
        where (str): The key it stands at, for the message.

    Raises:
        ValueError: If there is no such optimizer or rollback has no meaning for it.
    """
    example = "take one of torch or of MMEngine's registry, e.g. 'AdamW'"
    try:
        found = base
        if isinstance(base, str):
            found = find(OPTIMIZERS, base) or (base.endswith('OLOR') and find(OPTIMIZERS, base.removesuffix('OLOR')))
            if not found:
                near = nearest(base.rpartition('.')[2], [*registered(), *OPTIMIZERS.module_dict])
                raise ValueError(
                    f'there is no such optimizer; did you mean {near[0]!r}?' if near else f'there is none; {example}'
                )
        return with_rollback(found)
    except TypeError as error:
        raise ValueError(f'{where}={base!r}: {error}; {example}') from error
    except ValueError as error:
        raise ValueError(f'{where}={base!r}: {error}') from error


def wrapper_class(given: str | type, where: str) -> type:
    """The optim wrapper that a config names.

    Args:
        given (str or type): Name in MMEngine's registry, or the class.
        where (str): The key it stands at, for the message.

    Raises:
        ValueError: If there is none.
    """
    found = find(OPTIM_WRAPPERS, given) if isinstance(given, str) else given
    if not (isinstance(found, type) and issubclass(found, OptimWrapper)):
        near = nearest(given.rpartition('.')[2], OPTIM_WRAPPERS.module_dict) if isinstance(given, str) else []
        near = f'did you mean {near[0]!r}?' if near else "take 'OptimWrapper' or 'AmpOptimWrapper'"
        raise ValueError(f'{where}={given!r}: there is no such optim wrapper; {near}')
    return found


def find(registry: Registry, name: str) -> type | None:
    """What a registry has under a name, with or without a scope; None if that is nothing."""
    try:
        with registry.switch_scope_and_registry(None) as registry:
            return registry.get(name)
    except Exception:  # names with dots are looked for as modules, which fails in many ways
        return None


def flat_cfg(cfg: Mapping) -> dict:
    """``dict(type='OLOR', base=dict(type='Lion', lr=1e-4), rollback=0.01)`` as the config of one optimizer.

    Raises:
        ValueError: If ``base`` is not the config of an optimizer, or an option stands in both.
    """
    example = "dict(type='OLOR', base=dict(type='Lion', lr=1e-4))"
    base = cfg.get('base')
    if not isinstance(base, dict) or 'type' not in base:
        raise ValueError(f'optimizer.base={base!r} is not the config of an optimizer, as in {example}; give one')
    options = {key: value for key, value in cfg.items() if key not in ('type', 'base')}
    for key in options:
        if key in base:
            raise ValueError(
                f'optimizer.{key}={options[key]!r} and optimizer.base.{key}={base[key]!r}: keep one of them'
            )
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
    cfg = flat_cfg(dict(type='OLOR', base=as_dict(base, 'optimizer.base', "dict(type='Lion', lr=1e-4)"), **options))
    return rollback_class(cfg.pop('type'), 'optimizer.base.type')(params, **cfg)


class ZeroRedundancyOptimizerOLOR(ZeroRedundancyOptimizer):
    """MMEngine's ZeRO over an OLOR optimizer: every process keeps states and anchors of its share of the parameters.

    For runs with several processes; :class:`olor_mm.engine.ConsolidateOptimizerHook` is needed to save checkpoints.

    Args:
        params: Parameters or parameter groups, the same on every process.
        optimizer_type (str): Name of the optimizer in MMEngine's registry, e.g. ``'AdamW'`` or ``'AdamWOLOR'``.
        **options: Arguments of that optimizer and of :class:`olor_mm.optim.Rollback`.

    Raises:
        ValueError: If there is no such optimizer or rollback has no meaning for it.
    """

    def __init__(self, params, optimizer_type: str, **options):
        cls = rollback_class(optimizer_type, 'optimizer.optimizer_type')
        # MMEngine's own looks the type up in torch.optim alone
        super(ZeroRedundancyOptimizer, self).__init__(list(params), cls, **options)
        self.upstream: dict[str, torch.Tensor] = {}
        self._is_gathered = False

    @property
    def select_pretrained(self):
        """See :class:`olor_mm.optim.Rollback`; asked on every process for its own parameters."""
        return self.optim.select_pretrained

    @select_pretrained.setter
    def select_pretrained(self, select) -> None:
        self.optim.select_pretrained = select

    undecided = Rollback.undecided  # here of all processes together
    rollback_weight = Rollback.rollback_weight

    def step(self, closure=None, **kwargs):
        self._is_gathered = False
        return super().step(closure, **kwargs)

    def consolidate_state_dict(self, to: int = 0) -> None:
        """Gather the state of all processes on one; to be called on all of them."""
        super().consolidate_state_dict(to)
        self._is_gathered = True

    def state_dict(self) -> dict:
        """The state of all processes, on the process it was gathered on.

        Raises:
            RuntimeError: If it was not gathered since the last step. MMEngine saves checkpoints on the first process
                alone, where gathering would wait for the others for ever.
        """
        if not self._is_gathered:
            raise RuntimeError(
                'the state of ZeroRedundancyOptimizer is spread over the processes and was not gathered: set '
                "custom_hooks=[dict(type='ConsolidateOptimizerHook')], or default_hooks.checkpoint.save_optimizer=False"
            )
        state_dict = super(ZeroRedundancyOptimizer, self).state_dict()
        return sealed({**state_dict, 'upstream': self.upstream} if self.upstream else state_dict)

    def load_state_dict(self, state_dict: dict) -> None:
        """Load the state of all processes; each takes its share. See :meth:`olor_mm.optim.Rollback.load_state_dict`."""
        check_loadable(type(self.optim).__name__, state_dict, self.param_groups, self.optim.defaults)
        before = [dict(group) for group in self.param_groups]
        super().load_state_dict({**state_dict, 'state': dict(state_dict['state'])})
        self.state.clear()  # torch leaves a second copy here
        for groups in (self.param_groups, self.optim.param_groups):
            for message in settle_options(groups, before):
                self.optim.warn(message)
        self.optim.adopt_anchors({p: state['anchor'] for p, state in self.optim.state.items() if 'anchor' in state})
        self.upstream = state_dict.get('upstream', self.upstream)
