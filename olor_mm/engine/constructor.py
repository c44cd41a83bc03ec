"""From a config to an optimizer with layer-wise rollback."""

import inspect

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIMIZERS
from torch import nn

from ..layers import layer_index
from ..optim import layer_penalty, with_rollback
from ..optim.penalty import check_rollback
from ..pretrained import LoadRecord
from .selection import PretrainedSelection
from .settings import WHERE, RollbackSettings, as_dict, check_keys

STOCK_KEYS = (
    'custom_keys',
    'bias_lr_mult',
    'bias_decay_mult',
    'norm_decay_mult',
    'flat_decay_mult',
    'dwconv_decay_mult',
    'dcn_offset_lr_mult',
    'bypass_duplicate',
)


class OLOROptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's default constructor with layer-wise rollback.

    Every key of the default ``paramwise_cfg`` keeps its meaning. Added are ``rollback``, a dict of the arguments of
    :class:`olor_mm.engine.settings.RollbackSettings`, and a ``rollback`` within an entry of ``custom_keys``, which sets
    lambda of these parameters by hand. Any optimizer type may be given: its OLOR version is chosen.

    Parameters with equal options share one group. A parameter that stands in several places is taken once.

    Args:
        optim_wrapper_cfg (dict): Config of the optim wrapper, as for the default constructor.
        paramwise_cfg (dict, optional): Parameter-wise options.

    Raises:
        ValueError: If an option is unknown or out of range, a prefix matches nothing, or the optimizer cannot be used
            with rollback. Before the first iteration, if nothing was loaded (``pretrained='auto'``) or training was
            resumed without the optimizer's state.

    Example:
        >>> optim_wrapper = dict(
        ...     type='OptimWrapper',
        ...     constructor='OLOROptimWrapperConstructor',
        ...     optimizer=dict(type='AdamWOLOR', lr=1e-4, weight_decay=0.05),
        ...     paramwise_cfg=dict(rollback=dict(max_level=1e-2), norm_decay_mult=0.))
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None):
        paramwise_cfg = dict(as_dict(paramwise_cfg or {}, 'paramwise_cfg'))
        self.settings = RollbackSettings.from_cfg(paramwise_cfg.get('rollback'))
        check_keys(paramwise_cfg, ('rollback', *STOCK_KEYS), 'paramwise_cfg')
        if 'rollback' in optim_wrapper_cfg:
            raise ValueError(
                f'optim_wrapper.rollback={optim_wrapper_cfg["rollback"]!r} stands in the wrong place: it belongs into '
                'optim_wrapper.paramwise_cfg'
            )
        optimizer = as_dict(optim_wrapper_cfg.get('optimizer'), 'optimizer')
        custom_keys = as_dict(paramwise_cfg.get('custom_keys', {}), 'paramwise_cfg.custom_keys')
        # the default constructor makes groups only where there are options, and layers always need groups
        paramwise_cfg['rollback'] = self.settings
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        self.optimizer_cfg = self._rollback_optimizer(optimizer)
        for key, options in custom_keys.items():
            where = f'paramwise_cfg.custom_keys[{key!r}]'
            known = inspect.signature(self.optimizer_cfg['type'].__bases__[-1]).parameters
            check_keys(as_dict(options, where), ('lr_mult', 'decay_mult', 'rollback', *list(known)[1:]), where)
            check_rollback(options.get('rollback', 0.0), self.settings.coupling, where)

    def _rollback_optimizer(self, cfg: dict) -> dict:
        for key in ('rollback', 'rollback_coupling'):
            if key in cfg:
                raise ValueError(
                    f'optimizer.{key}={cfg[key]!r}: with this constructor, levels are set for each layer '
                    f'by {WHERE}, e.g. dict(max_level=1e-2, coupling={self.settings.coupling!r})'
                )
        base = cfg.get('type')
        try:
            if isinstance(base, str):
                with OPTIMIZERS.switch_scope_and_registry(None) as registry:
                    base = registry.get(base)
            cls = with_rollback(base)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f'optimizer.type={cfg.get("type")!r}: {error}') from error
        if cls is not base:
            print_log(f'OLOR: optimizer {base.__name__} is replaced by {cls.__name__}', logger='current')
        return dict(cfg, type=cls, rollback_coupling=self.settings.coupling)

    def __call__(self, model: nn.Module) -> OptimWrapper:
        model = getattr(model, 'module', model)
        record = LoadRecord(model)
        try:
            optim_wrapper = super().__call__(model)
        except TypeError as error:
            if 'unexpected keyword' not in str(error):
                raise
            raise TypeError(
                f'optimizer={self.optimizer_cfg}: {error}. If the config inherits settings of another '
                'optimizer, add _delete_=True to optim_wrapper'
            ) from error
        optimizer = optim_wrapper.optimizer
        selection = PretrainedSelection(model, record, self.settings)
        optimizer.select_pretrained = selection
        _check_at_start(optim_wrapper, selection)
        return optim_wrapper

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', is_dcn_module=None) -> None:
        """Add the groups of a module, with their lambda; equal ones are merged. See the base class."""
        super().add_params(params, module, prefix, is_dcn_module)
        if not prefix:
            self._check_custom_levels([name for name, _ in module.named_parameters()])
            params[:] = _merge(_unique(params), self._levels(module))

    def _check_custom_levels(self, names: list[str]) -> None:
        for key, options in self.paramwise_cfg.get('custom_keys', {}).items():
            if 'rollback' in options and not any(key in name for name in names):
                raise ValueError(
                    f'paramwise_cfg.custom_keys[{key!r}] sets rollback={options["rollback"]!r}, and {key!r} is part of '
                    f'no parameter name; names are like {names[0]!r} and {names[-1]!r}'
                )

    def _levels(self, model: nn.Module) -> dict[nn.Parameter, float]:
        s = self.settings
        method, overrides = (s.layer_index, None) if isinstance(s.layer_index, str) else ('block', s.layer_index)
        try:
            index = layer_index(model, method, overrides)
        except ValueError as error:
            raise ValueError(f'{WHERE}: {error}') from error
        return {
            p: layer_penalty(*index[name], s.max_level, s.min_level, s.power) for name, p in model.named_parameters()
        }


def _unique(groups: list[dict]) -> list[dict]:
    """Each parameter once: torch refuses the second group of a shared one."""
    by_parameter = {}
    for group in groups:
        by_parameter.setdefault(group['params'][0], group)
    return list(by_parameter.values())


def _merge(groups: list[dict], levels: dict[nn.Parameter, float]) -> list[dict]:
    """One group for all parameters with equal options, in the order in which options first appear."""
    merged: dict[str, dict] = {}
    for group in groups:
        [p] = group['params']
        options = {'rollback': levels[p], **{key: value for key, value in group.items() if key != 'params'}}
        merged.setdefault(repr(sorted(options.items())), dict(params=[], **options))['params'].append(p)
    return list(merged.values())


def _check_at_start(optim_wrapper: OptimWrapper, selection: PretrainedSelection) -> None:
    """Have the wrapper refuse to start where rollback would go wrong without a word.

    Runners tell the wrapper its iteration when weights, and on resume its state, have been loaded: no hook of a config
    is called at that point, and the first step would be an epoch of data loading later.
    """
    optimizer = optim_wrapper.optimizer
    initialize = optim_wrapper.initialize_count_status

    def checked(model: nn.Module, init_counts: int, max_counts: int) -> None:
        initialize(model, init_counts, max_counts)
        groups = [group for group in optimizer.param_groups if not group['rollback_decided']]
        if not groups:
            count = sum('anchor' in state for state in optimizer.state.values())
            selection.record.close()
            print_log(f'OLOR: goes on with the {count} anchors of the resumed run', logger='current')
            return
        for group in groups:  # auto_scale_lr may have changed it since
            group['rollback_initial_lr'] = float(group.get('initial_lr', group['lr']))
        if init_counts and optimizer.undecided():
            raise ValueError(
                f'training was resumed at iteration {init_counts} from a checkpoint without the state of '
                'the optimizer, so the pre-trained values are not known any more. Resume from a checkpoint '
                'saved with it (CheckpointHook save_optimizer=True), or start anew with load_from.'
            )
        selection.require_some(optimizer.undecided())

    optim_wrapper.initialize_count_status = checked
