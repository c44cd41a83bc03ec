"""From a config to an optimizer with layer-wise rollback."""

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from math import inf

import torch
from mmengine.dist import is_distributed
from mmengine.logging import MessageHub, print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper, ZeroRedundancyOptimizer
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from ..compat import unwrapped, whole_parameters
from ..layers import clean_name, declared_layers
from ..layers.groups import merge
from ..names import nearest
from ..optim.penalty import check_rollback, is_number
from ..optim.state import eager
from ..pretrained import LoadRecord
from .earlier import repeat_loading, was_initialised
from .optimizers import OLOR, ZeroRedundancyOptimizerOLOR, flat_cfg, is_named, rollback_class, wrapper_class
from .options import (
    arguments,
    check_by_trial,
    check_number,
    check_types,
    fault_of,
    is_ours,
    optimizer_trial,
    wrapper_trial,
)
from .selection import PretrainedSelection
from .settings import STOCK_KEYS, WHERE, RollbackSettings, as_dict, check_keys

MISTAKES = dict(_delete='_delete_', wd_mult='decay_mult')  # in stock configs of Twins and DNLNet, which stock ignores


class OLOROptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's default constructor with layer-wise rollback.

    Every key of the default ``paramwise_cfg`` keeps its meaning. Added are ``rollback``, a dict of the arguments of
    :class:`olor_mm.engine.settings.RollbackSettings`, and a ``rollback`` within an entry of ``custom_keys``, which sets
    lambda of these parameters by hand; one of 0 leaves them to the optimizer under every rule. Any optimizer type may
    be given: its OLOR version is chosen.

    ``layer_decay_rate`` d, in (0, 1], multiplies the learning rate of layer i of n by d^(n - i) (Clark et al., arXiv
    2003.10555). Unless ``rollback.layer_index`` says otherwise, layers are those of the backbone's ``get_layer_depth``,
    and rates then equal those of mmpretrain's ``LearningRateDecayOptimWrapperConstructor``; a backbone without it has
    those of its rollback. It is apart from rollback; ``rollback=dict(max_level=0)`` is layer-wise decay alone.

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
        paramwise_cfg = {} if paramwise_cfg is None else paramwise_cfg
        paramwise_cfg = dict(as_dict(paramwise_cfg, 'paramwise_cfg', 'dict(rollback=dict(max_level=1e-2))'))
        self.settings = RollbackSettings.from_cfg(paramwise_cfg.get('rollback', {}))
        check_keys(paramwise_cfg, ('rollback', 'layer_decay_rate', *STOCK_KEYS, *MISTAKES), 'paramwise_cfg')
        for key in MISTAKES.keys() & paramwise_cfg.keys():
            _log_warning(f'paramwise_cfg.{key}={paramwise_cfg[key]!r} is not used; did you mean {MISTAKES[key]!r}?')
        settings = self.settings
        if settings.power == 0 and 0 < settings.min_level < settings.max_level:
            _log_warning(
                f'{WHERE}.min_level={settings.min_level!r} is not used: with power={settings.power!r}, all layers have '
                f'max_level={settings.max_level!r}; leave it out, or give power, e.g. 1'
            )
        rate = paramwise_cfg.get('layer_decay_rate', 1.0)
        if rate == 1 and settings.layer_index != 'block' and settings.is_uniform:
            _log_warning(
                f'{WHERE}.layer_index={settings.layer_index!r} is not used: all layers have the same level, '
                f'{settings.max_level!r}; leave it out, or give power, e.g. 1'
            )
        if not is_number(rate) or not 0 < rate <= 1:
            raise ValueError(
                f'paramwise_cfg.layer_decay_rate={rate!r} is not a number in (0, 1]: it multiplies the learning rate '
                'once for every layer on the way from the head to the input; usual values lie between 0.6 and 0.9, and '
                '1 is the same rate everywhere'
            )
        if not isinstance(duplicate := paramwise_cfg.get('bypass_duplicate', False), bool):
            raise ValueError(f'paramwise_cfg.bypass_duplicate={duplicate!r} is not True or False; give one of them')
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
        optimizer = as_dict(optim_wrapper_cfg.get('optimizer'), 'optimizer', "dict(type='AdamWOLOR', lr=1e-4)")
        # MMEngine writes the library into what a config inherits from another one's
        optimizer = {key: value for key, value in optimizer.items() if key != '_scope_'}
        if is_named(optimizer.get('type'), OLOR):
            optimizer = flat_cfg(optimizer)
            optim_wrapper_cfg = {**optim_wrapper_cfg, 'optimizer': optimizer}
        own = {key: value for key, value in optim_wrapper_cfg.items() if key not in ('optimizer', '_scope_')}
        self._check_wrapper(own)
        custom_keys = _custom_keys(paramwise_cfg)
        # the default constructor makes groups only where there are options, and layers always need groups
        paramwise_cfg['rollback'] = self.settings
        optimizer_cfg = self._rollback_optimizer(optimizer)
        _require_base('weight_decay', optimizer, [name for name in _multipliers(paramwise_cfg) if 'decay_mult' in name])
        needs_lr = [name for name in _multipliers(paramwise_cfg) if 'lr_mult' in name] + [
            f'custom_keys[{key!r}]' for key in custom_keys
        ]
        _require_base('lr', optimizer, needs_lr + ['layer_decay_rate'] * (rate < 1))
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        self.optimizer_cfg = optimizer_cfg
        for key, options in custom_keys.items():
            self._check_custom(f'paramwise_cfg.custom_keys[{key!r}]', options)

    def _check_wrapper(self, cfg: dict) -> None:
        """Check the options of the optim wrapper itself."""
        given = cfg.pop('type', 'OptimWrapper')
        cfg.pop('_scope_', None)
        cls = wrapper_class(given, 'optim_wrapper.type')
        known = arguments(cls, given=0)
        if known is not None:
            known.pop('optimizer', None)
            check_keys(cfg, ('type', 'constructor', 'optimizer', 'paramwise_cfg', *known), 'optim_wrapper')
            check_types(cfg, known, 'optim_wrapper')
        clip = cfg.get('clip_grad')
        if clip is not None:
            example = 'dict(max_norm=1.0)'
            clip = dict(as_dict(clip, 'optim_wrapper.clip_grad', example))
            kind = clip.pop('type', 'norm')
            if kind not in ('norm', 'value') or not clip:
                raise ValueError(
                    f"optim_wrapper.clip_grad={cfg['clip_grad']!r}: take {example}, or dict(type='value', "
                    'clip_value=0.1)'
                )
            function = arguments(clip_grad_norm_ if kind == 'norm' else clip_grad_value_) or {}
            check_keys(clip, function, 'optim_wrapper.clip_grad')
            if clip.get('max_norm') != inf:  # to see the norm, without any clipping
                check_types(clip, function, 'optim_wrapper.clip_grad')
        trial = wrapper_trial(cls)
        if 'clip_grad' in cfg and clip is not None:
            check_by_trial(
                lambda o: trial({**cfg, 'clip_grad': {'type': kind, **o}}), clip, function, 'optim_wrapper.clip_grad'
            )
        check_by_trial(trial, cfg, known or {}, 'optim_wrapper')
        fault = fault_of(trial, cfg)
        if fault is not None:
            raise ValueError(f"optim_wrapper.type={given!r} cannot be used here: {fault}; take 'OptimWrapper'")

    def _check_custom(self, where: str, options: dict) -> None:
        """Check an entry of ``custom_keys``."""
        known = self.arguments
        known_keys = ('lr_mult', 'decay_mult', 'rollback', *known)
        others = [key for key in options if key in MISTAKES or not nearest(key, known_keys)]
        check_keys(options, (*known_keys, *others), where)
        for key in others:  # such as 'lars_exclude' of LARS and 'fix_lr' of SimSiamHook
            _log_warning(
                f'{where}.{key}={options[key]!r} is no argument of {self.stepper.__name__}; it is put into '
                'the parameter group, for what may read it there'
                + (f'. Did you mean {MISTAKES[key]!r}?' if key in MISTAKES else '')
            )
        check_types(options, known, where)
        check_rollback(options.get('rollback', 0.0), self.settings.coupling, self.settings.rule, 0.0, where)

    def _rollback_optimizer(self, cfg: Mapping) -> dict:
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
            raise ValueError(
                f'optimizer.{key}=None: optimizer={dict(cfg)!r} does not say which; name one, e.g. '
                f"optimizer=dict({key}='AdamW', lr=1e-4)"
            )
        self.stepper = rollback_class(cfg[key], f'optimizer.{key}')
        known = arguments(self.stepper)
        self.arguments = {name: p for name, p in (known or {}).items() if not name.startswith('rollback')}
        if known is not None:
            of_zero = arguments(torch.distributed.optim.ZeroRedundancyOptimizer) or {} if zero else {}
            hint = 'If the config inherits settings of another optimizer, add _delete_=True to optim_wrapper'
            check_keys(
                cfg, ('type', '_scope_', *(['optimizer_type'] * zero), *self.arguments, *of_zero), 'optimizer', hint
            )
        check_types(cfg, self.arguments, 'optimizer')
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
        self._try_options(model)
        try:
            optim_wrapper = super().__call__(model)
        except Exception as error:  # such as of Muon, which takes matrices alone
            if is_ours(error):
                raise
            raise ValueError(
                f'optimizer.type={self.stepper.__bases__[-1].__name__!r} cannot be used with this model: {error}; take '
                "another, e.g. 'AdamW'"
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
        custom = [
            f'paramwise_cfg.custom_keys[{key!r}].rollback={options["rollback"]!r}'
            for key, options in _custom_keys(self.paramwise_cfg).items()
            if options.get('rollback')
        ]
        selection.custom = f' (set by {", ".join(custom)})' if custom else ''
        for _, key in places:
            if not candidates and self.optimizer_cfg.get(key):
                _log_warning(
                    f'optimizer.{key}={self.optimizer_cfg[key]!r} is not used: nothing has a level above 0, so there '
                    f'are no anchors; leave it out, or set {WHERE}.max_level'
                )
        for group in optimizer.param_groups:
            group['names'] = [selection.names[p] for p in group['params']]
        optimizer.select_pretrained = selection
        layers = {clean_name(name): layer for name, layer in self.settings.index(model).items()}
        _check_at_start(optim_wrapper, selection, partial(_settle_half_life, self.settings, layers))
        return optim_wrapper

    def _try_options(self, model: nn.Module) -> None:
        """Make a few steps with the options of the optimizer, each entry of ``custom_keys``, and each multiplier."""
        base = self.stepper.__bases__[-1]
        known = arguments(base) or {}
        options = {key: value for key, value in self.optimizer_cfg.items() if key in known}
        device = next((p.device for p in model.parameters() if p.device.type != 'meta'), torch.device('cpu'))
        trial = optimizer_trial(base, device)
        check_by_trial(trial, options, known, 'optimizer')
        for key, custom in _custom_keys(self.paramwise_cfg).items():
            own = {name: value for name, value in custom.items() if name in known}
            check_by_trial(lambda o: trial({**options, **o}), own, known, f'paramwise_cfg.custom_keys[{key!r}]')
        for name, value in _multipliers(self.paramwise_cfg).items():
            where, _, key = name.rpartition('.')
            of = 'lr' if key.endswith('lr_mult') else 'weight_decay'
            check_by_trial(
                lambda o: trial({**options, of: options[of] * o.get(key, 1)}),  # noqa: B023
                {key: value},
                {},
                where,
            )

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', is_dcn_module=None) -> None:
        """Add the groups of a module, with their lambda; equal ones are merged. See the base class."""
        super().add_params(params, module, prefix, is_dcn_module)
        if not prefix:
            self._check_custom_levels([name for name, _ in module.named_parameters()])
            index = decayed = self._index(module)
            if self.paramwise_cfg.get('layer_decay_rate', 1.0) < 1 and self.settings.layer_index == 'block':
                decayed = {**index, **declared_layers(module)}
            layers = {p: (index[name], decayed[name]) for name, p in module.named_parameters()}
            params[:] = merge(map(partial(self._by_layer, layers), _unique(params)))

    def _by_layer(self, layers: dict[nn.Parameter, tuple[tuple[int, int], tuple[int, int]]], group: dict) -> dict:
        """A group of one parameter, with what its layers (i, n) mean for it, that of rollback and that of the decay."""
        (i, n), (depth, deepest) = layers[group['params'][0]]
        if self.settings.half_life is not None and 'rollback' not in group:
            group['rollback_half_life'] = self.settings.half_life
        group = {'rollback': self.settings.level(i, n), **group}
        if group['rollback'] and self.settings.new_level:
            group['rollback_new'] = self.settings.new_level
        scale = self.paramwise_cfg.get('layer_decay_rate', 1.0) ** (deepest - depth)
        return group if scale == 1 else {**group, 'lr': group.get('lr', self.base_lr) * scale}

    def _check_custom_levels(self, names: list[str]) -> None:
        for key, options in self.paramwise_cfg.get('custom_keys', {}).items():
            if any(key in name for name in names):
                continue
            where = f'paramwise_cfg.custom_keys[{key!r}]'
            near = nearest(key, {'.'.join(name.split('.')[: key.count('.') + 1]) for name in names})
            near = f'did you mean {near[0]!r}?' if near else f'names are like {names[0]!r} and {names[-1]!r}'
            if 'rollback' in options:
                raise ValueError(
                    f'{where} sets rollback={options["rollback"]!r}, and {key!r} is part of no parameter name; {near}'
                )
            # many stock configs have some that are for other models
            _log_warning(f'{where}={dict(options)!r} is not used: {key!r} is part of no parameter name; {near}')

    def _index(self, model: nn.Module) -> dict[str, tuple[int, int]]:
        try:
            return self.settings.index(model)
        except ValueError as error:
            raise ValueError(f'{WHERE}: {error}') from error


def _custom_keys(paramwise_cfg: dict) -> Mapping:
    where = 'paramwise_cfg.custom_keys'
    custom_keys = as_dict(paramwise_cfg.get('custom_keys', {}), where, "{'head': dict(lr_mult=10)}")
    for key, options in custom_keys.items():
        if not isinstance(key, str):
            raise ValueError(f"{where}: the key {key!r} (={options!r}) is no part of a name; give a text, e.g. 'head'")
        as_dict(options, f'{where}[{key!r}]', 'dict(lr_mult=10)')
    return custom_keys


def _multipliers(paramwise_cfg: dict) -> dict[str, float]:
    """Multipliers of learning rate and weight decay by their place in the config.

    Raises:
        ValueError: If one is not a finite number of 0 or more.
    """
    found = {
        f'paramwise_cfg.{key}': value
        for key, value in paramwise_cfg.items()
        if key in STOCK_KEYS and key.endswith('_mult') and value is not None
    }
    for name, options in _custom_keys(paramwise_cfg).items():
        of_name = {key: value for key, value in options.items() if key in ('lr_mult', 'decay_mult')}
        found.update({f'paramwise_cfg.custom_keys[{name!r}].{key}': value for key, value in of_name.items()})
    for where, value in found.items():
        check_number(value, where, 1.0)
    return found


def _require_base(key: str, optimizer: Mapping, multiples: list[str]) -> None:
    if multiples and optimizer.get(key) is None:
        raise ValueError(
            f'optimizer.{key} is not set, and {multiples[0]} is a multiple of it: set {key} in optimizer (in its base, '
            'of type OLOR), or leave that out'
        )


def _unique(groups: list[dict]) -> list[dict]:
    """Each parameter once: torch refuses the second group of a shared one."""
    by_parameter: dict[nn.Parameter, dict] = {}
    for group in groups:
        by_parameter.setdefault(group['params'][0], group)
    return list(by_parameter.values())


def _log_warning(message: str) -> None:
    print_log(f'OLOR: {message}', logger='current', level=logging.WARNING)


def _settle_half_life(
    settings: RollbackSettings, layers: dict[str, tuple[int, int]], groups: list[dict], accumulative_counts: int
) -> None:
    """Give groups the levels that a half-life means in the run that starts now; MMEngine's loops note its length."""
    hub = MessageHub.get_current_instance()
    max_iters, max_epochs = (hub.get_info(key) for key in ('max_iters', 'max_epochs'))
    if None in (max_iters, max_epochs):
        raise ValueError(
            f'{WHERE}.half_life={settings.half_life!r}: no training loop of MMEngine has told how long this run is; '
            'set max_level instead'
        )
    steps = settings.half_life_steps(max_iters, max_epochs, accumulative_counts)
    resolved = settings.resolved(steps)
    for group in groups:
        if 'rollback_half_life' in group:
            group['rollback'] = resolved.level(*layers[group['names'][0]])
    print_log(
        f'OLOR: half_life={settings.half_life!r} is {steps:.4g} steps of the optimizer in this run, so '
        f'max_level={resolved.max_level:.4g}'
        + (', at the learning rate it starts from' if settings.coupling == 'lr' else ''),
        logger='current',
    )


def _check_at_start(
    optim_wrapper: OptimWrapper, selection: PretrainedSelection, settle: Callable[[list[dict], int], None]
) -> None:
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
        if selection.half_life is not None:
            settle(groups, optim_wrapper._accumulative_counts)
            selection.half_life = None
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
