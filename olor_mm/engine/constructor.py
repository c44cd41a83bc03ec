"""From a config to an optimizer with layer-wise rollback."""

import inspect
import logging
from collections.abc import Iterable
from contextlib import AbstractContextManager
from functools import partial
from numbers import Real

from mmengine.dist import is_distributed
from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper, ZeroRedundancyOptimizer
from torch import nn

from ..compat import unwrapped, whole_parameters
from ..optim.penalty import check_rollback
from ..optim.state import eager
from ..pretrained import LoadRecord
from .earlier import repeat_loading, was_initialised
from .optimizers import OLOR, ZeroRedundancyOptimizerOLOR, flat_cfg, is_named, rollback_class
from .selection import PretrainedSelection
from .settings import WHERE, RollbackSettings, as_dict, check_keys, nearest

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
MISTAKES = ('_delete', 'wd_mult')  # in stock configs of Twins (for _delete_) and DNLNet (for decay_mult); stock ignores


class OLOROptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's default constructor with layer-wise rollback.

    Every key of the default ``paramwise_cfg`` keeps its meaning. Added are ``rollback``, a dict of the arguments of
    :class:`olor_mm.engine.settings.RollbackSettings`, and a ``rollback`` within an entry of ``custom_keys``, which sets
    lambda of these parameters by hand; one of 0 leaves them to the optimizer under every rule. Any optimizer type may
    be given: its OLOR version is chosen.

    ``layer_decay_rate`` d, in (0, 1], multiplies the learning rate of layer i of n by d^(n - i), as mmpretrain's
    ``LearningRateDecayOptimWrapperConstructor`` does, for any backbone (Clark et al., arXiv 2003.10555). It is apart
    from rollback; ``rollback=dict(max_level=0)`` is layer-wise decay alone.

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
        check_keys(paramwise_cfg, ('rollback', 'layer_decay_rate', *STOCK_KEYS, *MISTAKES), 'paramwise_cfg')
        rate = paramwise_cfg.get('layer_decay_rate', 1.0)
        if isinstance(rate, bool) or not isinstance(rate, Real) or not 0 < rate <= 1:
            raise ValueError(
                f'paramwise_cfg.layer_decay_rate={rate!r} is not a number in (0, 1]: it multiplies the learning rate '
                'once for every layer on the way from the head to the input; usual values lie between 0.6 and 0.9, and '
                '1 is the same rate everywhere'
            )
        if 'rollback' in optim_wrapper_cfg:
            raise ValueError(
                f'optim_wrapper.rollback={optim_wrapper_cfg["rollback"]!r} stands in the wrong place: it belongs into '
                'optim_wrapper.paramwise_cfg'
            )
        for refused in ('DeepSpeedOptimWrapper', 'ColossalAIOptimWrapper'):
            if is_named(optim_wrapper_cfg.get('type'), refused):
                raise ValueError(
                    f'optim_wrapper.type={refused!r} cannot be used with rollback: it replaces the parameters by '
                    'partitions of its own, which have no pre-trained value to return to. Take OptimWrapper or '
                    "AmpOptimWrapper, and to save memory optimizer=dict(type='ZeroRedundancyOptimizer', "
                    "optimizer_type='AdamW', ...) or FSDPStrategy with use_orig_params=True."
                )
        optimizer = as_dict(optim_wrapper_cfg.get('optimizer'), 'optimizer')
        if is_named(optimizer.get('type'), OLOR):
            optimizer = flat_cfg(optimizer)
            optim_wrapper_cfg = {**optim_wrapper_cfg, 'optimizer': optimizer}
        custom_keys = as_dict(paramwise_cfg.get('custom_keys', {}), 'paramwise_cfg.custom_keys')
        for key, options in custom_keys.items():
            as_dict(options, f'paramwise_cfg.custom_keys[{key!r}]')
        # the default constructor makes groups only where there are options, and layers always need groups
        paramwise_cfg['rollback'] = self.settings
        optimizer_cfg = self._rollback_optimizer(optimizer)
        decays = [key for key in paramwise_cfg if key.endswith('decay_mult')]
        decays += [
            f'custom_keys[{key!r}].decay_mult' for key, options in custom_keys.items() if 'decay_mult' in options
        ]
        if decays and optimizer.get('weight_decay') is None:
            raise ValueError(
                f'optimizer.weight_decay is not set, and paramwise_cfg.{decays[0]} is a multiple of it: set '
                'weight_decay in optimizer (in its base, of type OLOR), or leave that out'
            )
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        self.optimizer_cfg = optimizer_cfg
        for key, options in custom_keys.items():
            where = f'paramwise_cfg.custom_keys[{key!r}]'
            known = inspect.signature(self.stepper.__bases__[-1]).parameters
            known_keys = ('lr_mult', 'decay_mult', 'rollback', *list(known)[1:])
            others = [key for key in options if key in MISTAKES or not nearest(key, known_keys)]
            check_keys(options, (*known_keys, *others), where)
            for key in others:  # such as 'lars_exclude' of LARS and 'fix_lr' of SimSiamHook
                _log_warning(
                    f'{where}.{key}={options[key]!r} is no argument of {self.stepper.__name__}; it is put into '
                    'the parameter group, for what may read it there'
                )
            check_rollback(options.get('rollback', 0.0), self.settings.coupling, self.settings.rule, 0.0, where)

    def _rollback_optimizer(self, cfg: dict) -> dict:
        for key in ('rollback', 'rollback_coupling', 'rollback_rule', 'rollback_new'):
            if key in cfg:
                raise ValueError(
                    f'optimizer.{key}={cfg[key]!r}: with this constructor, levels are set for each layer '
                    f'by {WHERE}, e.g. dict(max_level=1e-2, coupling={self.settings.coupling!r})'
                )
        zero = any(is_named(cfg.get('type'), t) for t in (ZeroRedundancyOptimizer, ZeroRedundancyOptimizerOLOR))
        if zero and not is_distributed():
            raise ValueError(
                f'optimizer.type={cfg["type"]!r} shards an optimizer over processes, and there is one: start several '
                "with tools/dist_train.sh or torchrun and --launcher pytorch, or take optimizer=dict(type='AdamW', ...)"
            )
        key = 'optimizer_type' if zero else 'type'
        if key not in cfg:
            raise ValueError(f"optimizer.{key}=None: name an optimizer, e.g. optimizer=dict({key}='AdamW', lr=1e-4)")
        self.stepper = rollback_class(cfg[key], f'optimizer.{key}')
        if not is_named(cfg[key], self.stepper):
            print_log(f'OLOR: optimizer {cfg[key]} is replaced by {self.stepper.__name__}', logger='current')
        cls = ZeroRedundancyOptimizerOLOR if zero else self.stepper
        return dict(cfg, type=cls, rollback_coupling=self.settings.coupling, rollback_rule=self.settings.rule)

    def __call__(self, model: nn.Module) -> OptimWrapper:
        with whole_parameters(model) as is_sharded:
            if is_sharded and self.settings.pretrained == 'auto':
                raise ValueError(
                    f"{WHERE}.pretrained='auto': the model is sharded by FSDP, where loading cannot be watched; name "
                    "what is pre-trained, e.g. pretrained=['backbone']"
                )
            return self._build(unwrapped(model))

    def _build(self, model: nn.Module) -> OptimWrapper:
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
        getattr(optimizer, 'optim', optimizer).warn = _log_warning
        candidates = optimizer.undecided()
        if candidates and self.settings.pretrained == 'auto' and was_initialised(model):
            repeat_loading(model, record)
        selection = PretrainedSelection(model, record, self.settings, candidates)
        places = [(' as ', 'anchor_dtype'), (' on ', 'anchor_device'), (', mapped from ', 'anchor_file')]
        selection.kept = ''.join(
            f'{word}{self.optimizer_cfg[key]}' for word, key in places if self.optimizer_cfg.get(key)
        )
        for group in optimizer.param_groups:
            group['names'] = [selection.names[p] for p in group['params']]
        optimizer.select_pretrained = selection
        _check_at_start(optim_wrapper, selection)
        return optim_wrapper

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', is_dcn_module=None) -> None:
        """Add the groups of a module, with their lambda; equal ones are merged. See the base class."""
        super().add_params(params, module, prefix, is_dcn_module)
        if not prefix:
            self._check_custom_levels([name for name, _ in module.named_parameters()])
            params[:] = _merge(map(partial(self._by_layer, self._index(module)), _unique(params)))

    def _by_layer(self, index: dict[nn.Parameter, tuple[int, int]], group: dict) -> dict:
        """A group of one parameter, with what its layer (i, n) means for it."""
        i, n = index[group['params'][0]]
        group = {'rollback': self.settings.level(i, n), **group}
        if group['rollback'] and self.settings.new_level:
            group['rollback_new'] = self.settings.new_level
        scale = self.paramwise_cfg.get('layer_decay_rate', 1.0) ** (n - i)
        return group if scale == 1 else {**group, 'lr': group.get('lr', self.base_lr) * scale}

    def _check_custom_levels(self, names: list[str]) -> None:
        for key, options in self.paramwise_cfg.get('custom_keys', {}).items():
            if 'rollback' in options and not any(key in name for name in names):
                raise ValueError(
                    f'paramwise_cfg.custom_keys[{key!r}] sets rollback={options["rollback"]!r}, and {key!r} is part of '
                    f'no parameter name; names are like {names[0]!r} and {names[-1]!r}'
                )

    def _index(self, model: nn.Module) -> dict[nn.Parameter, tuple[int, int]]:
        try:
            index = self.settings.index(model)
        except ValueError as error:
            raise ValueError(f'{WHERE}: {error}') from error
        return {p: index[name] for name, p in model.named_parameters()}


def _unique(groups: list[dict]) -> list[dict]:
    """Each parameter once: torch refuses the second group of a shared one."""
    by_parameter = {}
    for group in groups:
        by_parameter.setdefault(group['params'][0], group)
    return list(by_parameter.values())


def _merge(groups: Iterable[dict]) -> list[dict]:
    """One group for all parameters with equal options, in the order in which options first appear."""
    merged: dict[str, dict] = {}
    for group in groups:
        options = {key: value for key, value in group.items() if key != 'params'}
        merged.setdefault(repr(sorted(options.items())), dict(params=[], **options))['params'] += group['params']
    return list(merged.values())


def _log_warning(message: str) -> None:
    print_log(f'OLOR: {message}', logger='current', level=logging.WARNING)


def _check_at_start(optim_wrapper: OptimWrapper, selection: PretrainedSelection) -> None:
    """Have the wrapper refuse to start where rollback would go wrong without a word, and keep norm statistics.

    This is done before the first forward pass, which changes the statistics, and which models have within the wrapper's
    ``optim_context``. No hook of a config runs between that and the loading of weights under every runner.
    """
    optimizer = optim_wrapper.optimizer
    initialize, context = optim_wrapper.initialize_count_status, optim_wrapper.optim_context
    first_iteration = 0

    def note_iteration(model: nn.Module, init_counts: int, max_counts: int) -> None:
        nonlocal first_iteration
        first_iteration = init_counts
        initialize(model, init_counts, max_counts)

    @eager
    def start() -> None:
        optim_wrapper.optim_context = context
        groups = [group for group in optimizer.param_groups if not group['rollback_decided']]
        if not groups:
            states = getattr(optimizer, 'optim', optimizer).state.values()
            count = sum(state.get('anchor') is not None for state in states)
            selection.record.close()
            print_log(f'OLOR: goes on with the {count} anchors of the resumed run', logger='current')
            return
        for group in groups:  # auto_scale_lr may have changed it since
            group['rollback_initial_lr'] = float(group.get('initial_lr', group['lr']))
        if first_iteration and optimizer.undecided():
            raise ValueError(
                f'training was resumed at iteration {first_iteration} from a checkpoint without the state of '
                'the optimizer, so the pre-trained values are not known any more. Resume from a checkpoint '
                'saved with it (CheckpointHook save_optimizer=True), or start anew with load_from.'
            )
        selection.require_some()
        if not selection.is_on and not optimizer.undecided():  # as asked for: not worth the warning of the first step
            for group in groups:
                group['rollback_decided'] = True
        optimizer.upstream = selection.copy_statistics()

    def start_and_enter(model: nn.Module) -> AbstractContextManager:
        start()
        return context(model)

    optim_wrapper.initialize_count_status = note_iteration
    optim_wrapper.optim_context = start_and_enter
