"""From a config to an optimizer with layer-wise rollback."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.dist import is_distributed
from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper, ZeroRedundancyOptimizer
from torch import nn

from ..layers import clean_name, declared_layers, unwrapped
from ..layers.groups import after_backbones, merge
from ..mixing import mix_in
from ..names import nearest
from ..optim.rules import RULES
from ..optim.state import OTHERWISE
from ..pretrained import LoadRecord
from .budgets import BudgetUse, EndOfTraining
from .fsdp import whole_parameters
from .optimizers import OLOR, flat_cfg, is_named, rollback_class
from .selection import PretrainedSelection, repeat_loading, was_initialised
from .settings import SECTION_KEYS, STOCK_KEYS, WHERE, RollbackSettings, as_dict, check_keys
from .start import Start, StartOfTraining
from .zero import ZeroRedundancyOptimizerOLOR

STRENGTHS = dict(rollback='rollback', max_drift='rollback_drift')  # in `custom_keys`, to options of a parameter group
OF_PLACE = dict(anchor_dtype=' as ', anchor_device=' on ', anchor_file=', mapped from ')


class OLOROptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's default constructor with layer-wise rollback.

    Every key of the default ``paramwise_cfg`` keeps its meaning. Added are ``rollback``, a dict of the arguments of
    :class:`olor_mm.engine.settings.RollbackSettings`, and a ``rollback`` within an entry of ``custom_keys``, which sets
    lambda of these parameters by hand; 0 leaves them to the optimizer under every rule. Any optimizer type may be
    given: its OLOR version is chosen.

    ``layer_decay_rate`` d, in (0, 1], multiplies the learning rate of layer i of n by d^(n - i) (Clark et al., arXiv
    2003.10555). Unless ``rollback.layer_index`` says otherwise, layers are those of the backbone's ``get_layer_depth``,
    and rates then equal those of mmpretrain's ``LearningRateDecayOptimWrapperConstructor``; a backbone without it has
    those of its rollback. It is apart from rollback; ``rollback=dict(max_level=0)`` is layer-wise decay alone.

    Parameters with equal options share one group. A parameter that stands in several places is taken once.

    Args:
        optim_wrapper_cfg (dict): Config of the optim wrapper, as for the default constructor.
        paramwise_cfg (dict, optional): Parameter-wise options.

    Raises:
        ValueError: If one of these options is unknown or out of range, a prefix matches nothing, or the optimizer
            cannot be used with rollback. Before the first iteration, if nothing was loaded (``pretrained='auto'``) or
            training was resumed without the optimizer's state.

    Example:
        >>> optim_wrapper = dict(
        ...     type='OptimWrapper',
        ...     constructor='OLOROptimWrapperConstructor',
        ...     optimizer=dict(type='AdamWOLOR', lr=1e-4, weight_decay=0.05),
        ...     paramwise_cfg=dict(rollback=dict(max_level=1e-2), norm_decay_mult=0.))
    """

    heads: list[nn.Parameter]  # what is trained after the backbone, without a level by hand
    layers: dict[nn.Parameter, int]  # i of every parameter that is trained

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None):
        stock, self.settings = _parsed(paramwise_cfg or {})
        _check_wrapper(optim_wrapper_cfg)
        optimizer = as_dict(optim_wrapper_cfg.get('optimizer'), 'optimizer', "dict(type='AdamWOLOR', lr=1e-4)")
        # MMEngine writes the library into what a config inherits from another one's
        optimizer = {key: value for key, value in optimizer.items() if key != '_scope_'}
        if is_named(optimizer.get('type'), OLOR):
            optimizer = flat_cfg(optimizer)
        # the default constructor makes groups only where there are options, and layers always need groups
        super().__init__({**optim_wrapper_cfg, 'optimizer': optimizer}, {**stock, 'rollback': self.settings})
        if self.settings.layer_decay_rate < 1 and self.base_lr is None:
            raise ValueError('optimizer.lr=None: paramwise_cfg.layer_decay_rate is a multiple of it; set optimizer.lr')
        has_level = self.settings.max_drift is None and self.settings.max_level
        follows_rate = RULES[self.settings.rule].is_review and self.settings.coupling == 'lr'
        if self.base_lr == 0 and has_level and follows_rate:
            hint = "set the rate that training starts from, or coupling='constant'"
            raise ValueError(f'optimizer.lr={self.base_lr!r}: levels are meant for it and follow it; {hint}')
        self.optimizer_cfg = self._rollback_optimizer(optimizer)

    def _rollback_optimizer(self, cfg: dict) -> dict:
        for key in ('rollback', 'rollback_drift', 'rollback_coupling', 'rollback_rule', 'rollback_new'):
            if key in cfg:
                raise ValueError(f'optimizer.{key}={cfg[key]!r}: this constructor sets it by {WHERE}; move it there')
        zero = any(is_named(cfg.get('type'), t) for t in (ZeroRedundancyOptimizer, ZeroRedundancyOptimizerOLOR))
        if zero and not is_distributed():
            hint = "start several with tools/dist_train.sh, or take optimizer=dict(type='AdamW', ...)"
            raise ValueError(f'optimizer.type={cfg["type"]!r} shards over processes, and there is one: {hint}')
        key = 'optimizer_type' if zero else 'type'
        found = rollback_class(cfg.get(key), f'optimizer.{key}')
        if not is_named(cfg[key], found):
            print_log(f'OLOR: optimizer {cfg[key]} is replaced by {found.__name__}', logger='current')
        cls = ZeroRedundancyOptimizerOLOR if zero else found
        return dict(cfg, type=cls, rollback_coupling=self.settings.coupling, rollback_rule=self.settings.rule)

    def __call__(self, model: nn.Module) -> OptimWrapper:
        with whole_parameters(model) as is_sharded:
            if is_sharded and self.settings.pretrained == 'auto':
                hint = "name what is pre-trained, e.g. pretrained=['backbone']"
                raise ValueError(f"{WHERE}.pretrained='auto': FSDP shards the model and hides what is loaded; {hint}")
            return self._build(unwrapped(model))

    def _build(self, model: nn.Module) -> OptimWrapper:
        record = LoadRecord(model)
        optim_wrapper = super().__call__(model)
        optimizer = optim_wrapper.optimizer
        inner = getattr(optimizer, 'optim', optimizer)
        inner.warn = _log_warning
        candidates = optimizer.undecided()
        if candidates and self.settings.pretrained == 'auto' and was_initialised(model):
            repeat_loading(model, record)
        places = {key: self.optimizer_cfg[key] for key in OF_PLACE if self.optimizer_cfg.get(key)}
        for key, value in places.items() if not candidates else ():
            _log_warning(f'optimizer.{key}={value!r} is not used: no parameter has a {self.settings.kind} above 0')
        kept = ''.join(f'{OF_PLACE[key]}{value}' for key, value in places.items())
        selection = PretrainedSelection(model, record, self.settings, candidates, kept)
        for group in optimizer.param_groups:
            group['names'] = [selection.names[p] for p in group['params']]
        optimizer.select_pretrained = selection
        inner.names = selection.names
        mix_in(optim_wrapper, StartOfTraining)
        mix_in(optim_wrapper, EndOfTraining)
        optim_wrapper.budgets = BudgetUse(optimizer, self.layers)
        optim_wrapper.start = Start(optimizer, selection, optim_wrapper.message_hub, self.heads)
        selection.start = optim_wrapper.start  # for a loop that steps the optimizer by itself
        return optim_wrapper

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', is_dcn_module=None) -> None:
        """Add the groups of a module, with their lambda; equal ones are merged. See the base class."""
        super().add_params(params, module, prefix, is_dcn_module)
        if not prefix:
            params[:] = merge(self._with_levels(params, module))

    def _with_levels(self, groups: list[dict], model: nn.Module) -> Iterator[dict]:
        """Groups of one parameter each, with what the layer (i, n) of the parameter means for them."""
        settings = self.settings
        index = decayed = settings.index(model)
        if settings.layer_decay_rate < 1 and settings.layer_index == 'block':
            decayed = {**index, **declared_layers(model)}
        names = {p: name for name, p in model.named_parameters()}
        custom = _custom_strengths(settings.custom_strengths, [clean_name(name) for name in names.values()])
        heads = {name for name in after_backbones(model, index) if clean_name(name) not in custom}
        _note_unused(self.paramwise_cfg.get('custom_keys', {}), names.values())
        by_parameter: dict[nn.Parameter, dict] = {}
        for group in groups:  # torch refuses the second group of a shared parameter
            by_parameter.setdefault(group['params'][0], group)
        self.heads = [p for p in by_parameter if names[p] in heads]
        self.layers = {p: index[names[p]][0] for p in by_parameter}
        for p, group in by_parameter.items():
            name = names[p]
            strength = custom.get(clean_name(name), settings.strength(*index[name], bool(self.heads)))
            group = {**group, **strength}
            otherwise = custom.get(clean_name(name), settings.strength(*index[name]))
            if otherwise != strength:  # known when all is loaded, see Start
                group[OTHERWISE] = otherwise['rollback']
            if strength.get('rollback') and settings.new_level:
                group['rollback_new'] = settings.new_level
            i, n = decayed[name]
            scale = settings.layer_decay_rate ** (n - i)
            if scale != 1:
                rate: Any = group.get('lr', self.base_lr)
                group['lr'] = scale * rate
            yield group


def _parsed(paramwise_cfg: Mapping) -> tuple[dict, RollbackSettings]:
    """The stock part of ``paramwise_cfg``, and our settings in it.

    A level or a budget in an entry of ``custom_keys`` is taken out of what MMEngine sees: its matching gives a
    parameter the first entry that fits, and an entry with nothing else would hide stock options of another.
    """
    cfg = dict(as_dict(paramwise_cfg, 'paramwise_cfg', 'dict(rollback=dict(max_level=1e-2))'))
    if '_delete' in cfg:  # in stock configs of Twins; MMEngine ignores it
        _log_warning(f'paramwise_cfg._delete={cfg.pop("_delete")!r} is not used')
    check_keys(cfg, ('rollback', 'layer_decay_rate', *STOCK_KEYS), 'paramwise_cfg')
    where = 'paramwise_cfg.custom_keys'
    entries, strengths = {}, {}
    for key, options in as_dict(cfg.get('custom_keys', {}), where, "{'head': dict(lr_mult=10)}").items():
        options = dict(as_dict(options, f'{where}[{key!r}]', 'dict(lr_mult=10)'))
        ours = [name for name in options if name in SECTION_KEYS or nearest(name, ['rollback'])]
        known = (*STRENGTHS, 'lr_mult', 'decay_mult')
        check_keys({name: options[name] for name in ours}, known, f'{where}[{key!r}]')
        if found := {name: options.pop(name) for name in STRENGTHS if name in options}:
            strengths[key] = found
        if options or key not in strengths:
            entries[key] = options
    rate = cfg.pop('layer_decay_rate', 1.0)
    settings = RollbackSettings.from_cfg(cfg.pop('rollback', {}), layer_decay_rate=rate, custom_strengths=strengths)
    _note_unused_settings(settings)
    return {**cfg, 'custom_keys': entries} if 'custom_keys' in cfg else cfg, settings


def _note_unused_settings(settings: RollbackSettings) -> None:
    if settings.max_drift is not None:
        return
    if settings.power == 0 and settings.min_level and settings.min_level < settings.max_level:
        _log_warning(f'{WHERE}.min_level={settings.min_level!r} is not used with power=0: all layers have max_level')
    is_uniform = settings.power == 0 or settings.min_level == settings.max_level
    if settings.layer_decay_rate == 1 and settings.layer_index != 'block' and is_uniform:
        _log_warning(f'{WHERE}.layer_index={settings.layer_index!r} is not used: all layers have the same level')


def _check_wrapper(cfg: Mapping) -> None:
    if 'rollback' in cfg:
        raise ValueError(f'optim_wrapper.rollback={cfg["rollback"]!r} belongs into optim_wrapper.paramwise_cfg')
    for refused in ('DeepSpeedOptimWrapper', 'ColossalAIOptimWrapper'):
        if is_named(cfg.get('type'), refused):
            raise ValueError(
                f'optim_wrapper.type={refused!r} cannot be used with rollback: it replaces parameters by partitions of '
                'its own, which have no pre-trained value. Take OptimWrapper or AmpOptimWrapper; '
                'ZeroRedundancyOptimizer or FSDPStrategy (use_orig_params=True) save memory'
            )


def _custom_strengths(strengths: Mapping[str, Mapping[str, float]], names: list[str]) -> dict[str, dict[str, float]]:
    """Parameter name to the options of the longest key that is part of it, as MMEngine matches ``custom_keys``.

    Raises:
        ValueError: If a key is part of no name.
    """
    found: dict[str, dict[str, float]] = {}
    for key in sorted(strengths, key=lambda key: (-len(key), key)):
        fitting = [name for name in names if key in (name if '.' in name else f'.{name}')]
        if not fitting:
            option, value = next(iter(strengths[key].items()))
            where = f'paramwise_cfg.custom_keys[{key!r}].{option}={value!r}'
            raise ValueError(f'{where}: {key!r} is part of no parameter name{_like(key, names)}')
        for name in fitting:
            found.setdefault(name, {STRENGTHS[option]: value for option, value in strengths[key].items()})
    return found


def _note_unused(custom_keys: Mapping[str, dict], names) -> None:
    """Many stock configs have entries that are for other models."""
    for key, options in custom_keys.items():
        if not any(key in f'.{name}' for name in names):
            where = f'paramwise_cfg.custom_keys[{key!r}]={options!r}'
            _log_warning(f'{where} is not used: it is part of no parameter name{_like(key, names)}')


def _like(key: str, names) -> str:
    parts = {'.'.join(name.split('.')[: key.count('.') + 1]) for name in names}
    near = ''.join(f'; did you mean {name!r}?' for name in nearest(key, parts))
    return near or f'; names are like {next(iter(names), "")!r}'


def _log_warning(message: str) -> None:
    print_log(f'OLOR: {message}', logger='current', level=logging.WARNING)
