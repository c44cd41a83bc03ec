"""From a config to an optimizer with layer-wise rollback."""

import logging

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIMIZERS
from torch import nn

from ..layers import layer_index, names_under
from ..optim import layer_penalty, with_rollback
from ..optim.rollback import check_rollback
from ..pretrained import LoadRecord
from .settings import WHERE, RollbackSettings, check_keys

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
        paramwise_cfg = dict(paramwise_cfg or {})
        self.settings = RollbackSettings.from_cfg(paramwise_cfg.get('rollback'))
        check_keys(paramwise_cfg, ('rollback', *STOCK_KEYS), 'paramwise_cfg')
        # the default constructor makes groups only where there are options, and layers always need groups
        paramwise_cfg['rollback'] = self.settings
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        for key, options in paramwise_cfg.get('custom_keys', {}).items():
            check_rollback(options.get('rollback', 0.0), self.settings.coupling, f'paramwise_cfg.custom_keys[{key!r}]')
        self.optimizer_cfg = self._rollback_optimizer(self.optimizer_cfg)

    def _rollback_optimizer(self, cfg: dict) -> dict:
        for key in ('rollback', 'rollback_coupling'):
            if key in cfg:
                raise ValueError(
                    f'optimizer.{key}={cfg[key]!r}: with this constructor, levels are set for each layer '
                    f'by {WHERE}, e.g. dict(max_level=1e-2, coupling={self.settings.coupling!r})'
                )
        base = cfg.get('type')
        if isinstance(base, str):
            with OPTIMIZERS.switch_scope_and_registry(None) as registry:
                base = registry.get(base)
        try:
            cls = with_rollback(base)
        except (TypeError, ValueError) as error:
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
        selection = PretrainedSelection(model, record, self.settings.pretrained)
        optimizer.select_pretrained = selection
        _check_at_start(optim_wrapper, selection)
        return optim_wrapper

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', is_dcn_module=None) -> None:
        """Add the groups of a module, with their lambda; equal ones are merged. See the base class."""
        super().add_params(params, module, prefix, is_dcn_module)
        if not prefix:
            params[:] = _merge(_unique(params), self._levels(module))

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


def _check_at_start(optim_wrapper: OptimWrapper, selection: 'PretrainedSelection') -> None:
    """Have the wrapper refuse to start where rollback would go wrong without a word.

    Runners tell the wrapper its iteration when weights, and on resume its state, have been loaded: no hook of a config
    is called at that point, and the first step would be an epoch of data loading later.
    """
    optimizer = optim_wrapper.optimizer
    initialize = optim_wrapper.initialize_count_status

    def checked(model: nn.Module, init_counts: int, max_counts: int) -> None:
        initialize(model, init_counts, max_counts)
        for group in optimizer.param_groups:  # auto_scale_lr has changed it since, and is not a schedule
            group.setdefault('initial_lr', group['lr'])
        undecided = set(optimizer.undecided)
        rolled_back = [p for g in optimizer.param_groups if g['rollback'] > 0 for p in g['params'] if p in undecided]
        if not rolled_back:
            return
        if init_counts:
            raise ValueError(
                f'training was resumed at iteration {init_counts} from a checkpoint without the state of '
                'the optimizer, so the pre-trained values are not known any more. Resume from a checkpoint '
                'saved with it (CheckpointHook save_optimizer=True), or start anew with load_from.'
            )
        selection.require_some(rolled_back)

    optim_wrapper.initialize_count_status = checked


class PretrainedSelection:
    """Decides, when anchors are captured, which parameters were pre-trained, and logs it.

    Args:
        model (nn.Module): The model without wrappers.
        record (LoadRecord): What was loaded into it since it was built.
        pretrained (str or list[str]): As in :class:`RollbackSettings`.

    Raises:
        ValueError: If a prefix matches no parameter.
    """

    def __init__(self, model: nn.Module, record: LoadRecord, pretrained: str | list[str]):
        self.pretrained = pretrained
        self.record = record
        self.names = {p: name for name, p in model.named_parameters()}
        self.claimed = set(self.names)
        if not isinstance(pretrained, str):
            names = self.names.values()
            under = {name for prefix in pretrained for name in names_under(prefix, names, f'{WHERE}.pretrained')}
            self.claimed = {p for p, name in self.names.items() if name in under}

    def require_some(self, params: list[nn.Parameter]) -> None:
        """Refuse 'auto' where nothing was loaded.

        Raises:
            ValueError: The message says what to set.
        """
        if self.pretrained == 'auto' and not self.record.loaded(params):
            raise ValueError(
                f"{WHERE}.pretrained='auto': no checkpoint was loaded into any parameter with a level above 0, so "
                "there are no pre-trained weights to return to. Set load_from=..., or init_cfg=dict(type='Pretrained', "
                'checkpoint=...) of the backbone. If the weights are loaded where this cannot be seen, by a TIMM '
                "wrapper in its constructor or by FlexibleRunner, set pretrained=['backbone'] or 'all'. For a run "
                'without rollback set max_level=0.'
            )

    def __call__(self, params: list[nn.Parameter]) -> list[nn.Parameter]:
        loaded = self.record.loaded(params)
        if self.pretrained == 'auto':
            selected = self.record.unchanged(loaded)
            self._warn(
                'were initialised again after a checkpoint had been loaded into them and count as new',
                set(loaded) - set(selected),
            )
            self.require_some(selected)
        else:
            selected = [p for p in params if p in self.claimed]
            if len(self.record):
                self._warn(
                    f'count as pre-trained because of pretrained={self.pretrained!r}, though no checkpoint was '
                    'loaded into them',
                    set(selected) - set(loaded),
                )
        self.record.close()
        self._report(params, selected)
        return selected

    def _warn(self, what: str, params: set) -> None:
        if params:
            names = [name for p, name in self.names.items() if p in params]
            shown = ', '.join(names[:5]) + (', ...' if len(names) > 5 else '')
            print_log(f'OLOR: {len(names)} parameters {what}: {shown}', logger='current', level=logging.WARNING)

    def _report(self, params: list[nn.Parameter], selected: list[nn.Parameter]) -> None:
        chosen, parts = set(selected), {}
        for p in params:
            counts = parts.setdefault(self.names[p].partition('.')[0], [0, 0])
            counts[0] += p in chosen
            counts[1] += 1
        size = sum(p.numel() * p.element_size() for p in selected) / 2**20
        print_log(
            f'OLOR: {len(selected)} of {len(params)} parameter tensors with a level above 0 are pre-trained and rolled '
            'back ('
            + ', '.join(f'{name} {some} of {total}' for name, (some, total) in parts.items())
            + f'); their anchors take {size:.1f} MiB',
            logger='current',
        )
