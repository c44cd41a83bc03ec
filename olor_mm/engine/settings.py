"""The ``paramwise_cfg.rollback`` section of a config, parsed once into :class:`RollbackSettings`."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

from ..layers import METHODS, layer_index
from ..names import nearest
from ..optim.penalty import (
    HINTS,
    SHARE_OF_HEADS,
    check_budget,
    check_levels,
    check_number,
    is_number,
    layer_budget,
    layer_penalty,
)
from ..optim.rules import COUPLINGS, RULES, Rule, check_new, rule_named

WHERE = 'paramwise_cfg.rollback'
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


@dataclass(frozen=True)
class RollbackSettings:
    """How strongly each layer is pulled back, and which parameters count as pre-trained.

    Args:
        max_level (float): iota_1, lambda of the layer nearest the input, in [0, 1], of other rules in [0, inf).
            Defaults to 0.01, in a config with 'spd' to 1.
        min_level (float, optional): iota_2, lambda of neck and head, in [0, max_level]. None is 0.3 of ``max_level`` if
            any of them is pre-trained, and 0 if none is. Defaults to None.
        max_drift (float or (float, float), optional): Instead of levels, a drift budget: how far a pre-trained tensor
            may move, as a share of its norm, see :mod:`olor_mm.optim.rules.drift`. Of two, the first is for the layer
            nearest the input and the second for neck and head, and ``power`` shapes what is between. Defaults to None.
        power (float): gamma >= 0, the decay of lambda over depth. Defaults to 1, in a config with another rule to 0.
        pretrained (str or list[str]): 'auto' takes the parameters that a checkpoint was loaded into, 'all' takes all,
            a list takes those under these prefixes, e.g. ``['backbone']``. Defaults to 'auto'.
        layer_index (str or dict[str, int]): 'block' or 'tensor', see :func:`olor_mm.layers.layer_index`, or a dict
            from prefixes to layer numbers that overrides 'block'. Defaults to 'block'.
        coupling (str): 'lr' lets w of 'olor' follow the learning rate schedule, 'constant' does not. Defaults to 'lr'.
        rule (str): 'olor', or a baseline of :mod:`olor_mm.optim.rules`: 'l2sp', 'l2sp_decoupled', 'spd'. Their alpha
            or lambda is ``max_level``, in all layers unless ``power`` is above 0. Defaults to 'olor'.
        new_level (float): beta of L2-SP: it pulls to 0 what was not pre-trained. Defaults to 0.
        layer_decay_rate (float): Beside the section, ``paramwise_cfg.layer_decay_rate``, in (0, 1]. Defaults to 1.
        custom_strengths (Mapping[str, Mapping[str, float]]): Part of a parameter name to its ``rollback``, lambda, or
            its ``max_drift``, a budget, from ``custom_keys``.

    Raises:
        ValueError: The message has the key, its value and what would be right.
    """

    max_level: float = 1e-2
    min_level: float | None = None
    max_drift: float | tuple[float, float] | None = None
    power: float = 1.0
    pretrained: str | list[str] = 'auto'
    layer_index: str | dict[str, int] = 'block'
    coupling: str = 'lr'
    rule: str = 'olor'
    new_level: float = 0.0
    layer_decay_rate: float = field(default=1.0, metadata=dict(beside=True))
    custom_strengths: Mapping[str, Mapping[str, float]] = field(default_factory=dict, metadata=dict(beside=True))

    @classmethod
    def from_cfg(cls, cfg: Mapping, **beside) -> 'RollbackSettings':
        """Parse the section as it stands in a config; {} gives the defaults of its ``rule``."""
        cfg = as_dict(cfg, WHERE, 'dict(max_level=1e-2); max_level=0 is a run without rollback')
        if 'half_life' in cfg:
            raise ValueError(f'{WHERE}.half_life={cfg["half_life"]!r} is gone: give max_level=1 - 2 ** (-1 / steps)')
        check_keys(cfg, SECTION_KEYS, WHERE)
        if cfg.get('max_drift') is not None:
            for key in LEVEL_KEYS:
                if key in cfg:
                    given = f'{WHERE}.max_drift={cfg["max_drift"]!r} and {key}={cfg[key]!r}'
                    raise ValueError(f'{given}: a budget and levels are two ways to say how strongly; leave one out')
        rule = cfg.get('rule')
        defaults = RULES[rule].defaults if isinstance(rule, str) and rule in RULES else {}
        return cls(**{**defaults, **cfg, **beside})

    def index(self, model: nn.Module) -> dict[str, tuple[int, int]]:
        """The layer (i, n) of every parameter by name, as ``layer_index`` of the config wants it."""
        try:
            if isinstance(self.layer_index, str):
                return layer_index(model, self.layer_index)
            return layer_index(model, overrides=self.layer_index)
        except ValueError as error:
            raise ValueError(f'{WHERE}: {error}') from error

    @property
    def is_on(self) -> bool:
        """Whether layers have a level or a budget."""
        return self.max_level > 0 if self.max_drift is None else True

    @property
    def shown_rule(self) -> Rule:
        """The rule of the layers: that of the section, or the drift budget."""
        return RULES[self.rule if self.max_drift is None else 'drift']

    @property
    def given(self) -> str:
        """What the config says about how strongly, for messages."""
        key = 'max_level' if self.max_drift is None else 'max_drift'
        return f'{WHERE}.{key}={getattr(self, key)!r}'

    @property
    def kind(self) -> str:
        """What parameters have: 'level', 'budget' or 'level or budget', for messages."""
        own = {key for strength in self.custom_strengths.values() for key, value in strength.items() if value}
        has_level, has_budget = 'rollback' in own, 'max_drift' in own
        kinds = dict(level=has_level or self.max_drift is None, budget=has_budget or self.max_drift is not None)
        return ' or '.join(kind for kind, is_given in kinds.items() if is_given)

    @property
    def how_to_turn_off(self) -> str:
        """A remedy, for messages."""
        return f'give max_level=0{" instead of max_drift" * (self.max_drift is not None)} for a run without rollback'

    def strength(self, layer: int, num_layers: int, heads_are_pretrained: bool = False) -> dict[str, float]:
        """Options of a parameter group in layer i of n: its ``rollback``, or its ``rollback_drift``."""
        if self.max_drift is None:
            return dict(rollback=self.level(layer, num_layers, heads_are_pretrained))
        return dict(rollback_drift=layer_budget(layer, num_layers, self.max_drift, self.power))

    def level(self, layer: int, num_layers: int, heads_are_pretrained: bool = False) -> float:
        """lambda of layer i of n, see :func:`olor_mm.optim.layer_penalty`; for any rule."""
        min_level = self.min_level
        if min_level is None:
            min_level = SHARE_OF_HEADS * self.max_level if heads_are_pretrained else 0.0
        return layer_penalty(layer, num_layers, self.max_level, min_level, self.power, RULES[self.rule].highest)

    def __post_init__(self):
        rule = rule_named(self.rule, f'{WHERE}.rule')
        if rule.is_drift:
            raise ValueError(f'{WHERE}.rule={self.rule!r}: give max_drift=0.05, a budget, instead of a rule')
        min_level = 0.0 if self.min_level is None else self.min_level
        check_levels(self.max_level, min_level, self.power, f'{WHERE}.', rule.highest)
        check_new(rule, self.new_level, f'{WHERE}.new_level')
        if self.new_level and self.level(1, 1) == 0:
            levels = f'max_level={self.max_level!r}, min_level={self.min_level!r}, power={self.power!r}'
            raise ValueError(
                f'{WHERE}.new_level={self.new_level!r} needs a level in the head; raise min_level: {levels}'
            )
        if not isinstance(self.coupling, str) or self.coupling not in COUPLINGS:
            raise ValueError(f"{WHERE}.coupling={self.coupling!r} is unknown; take 'lr' or 'constant'")
        if self.coupling != 'lr' and not rule.is_review:
            raise ValueError(f"{WHERE}.coupling={self.coupling!r} is an option of rule='olor', not of {self.rule!r}")
        by_name = isinstance(self.pretrained, (list, tuple)) and all(isinstance(name, str) for name in self.pretrained)
        if self.pretrained not in ('auto', 'all') and not (by_name and self.pretrained):
            hint = "take 'auto' (what was loaded), 'all', or a list of prefixes of parameter names, e.g. ['backbone']"
            raise ValueError(f'{WHERE}.pretrained={self.pretrained!r} is unknown; {hint}')
        by_layer = isinstance(self.layer_index, Mapping) and all(isinstance(key, str) for key in self.layer_index)
        if not by_layer and not (isinstance(self.layer_index, str) and self.layer_index in METHODS):
            hint = "take 'block', 'tensor', or a dict from prefixes to layer numbers, e.g. {'backbone.conv1': 0}"
            raise ValueError(f'{WHERE}.layer_index={self.layer_index!r} is unknown; {hint}')
        if not is_number(self.layer_decay_rate) or not 0 < self.layer_decay_rate <= 1:
            given = f'paramwise_cfg.layer_decay_rate={self.layer_decay_rate!r}'
            raise ValueError(f'{given} is not a number in (0, 1]; it multiplies lr once a layer, usually 0.6 to 0.9')
        for key, strength in self.custom_strengths.items():
            where = f'paramwise_cfg.custom_keys[{key!r}]'
            if len(strength) > 1:
                given = ' and '.join(f'{name}={value!r}' for name, value in strength.items())
                raise ValueError(f'{where} has {given}: they are two ways to say how strongly; leave one out')
            for name, value in strength.items():
                limits = (HINTS[name],) if name == 'max_drift' else ('it is lambda, e.g. 0.01', rule.highest)
                check_number(f'{where}.{name}', value, *limits)
        if self.max_drift is not None:
            check_budget(f'{WHERE}.max_drift', self.max_drift)


LEVEL_KEYS = ('max_level', 'min_level', 'rule', 'coupling', 'new_level')
SECTION_KEYS = [field.name for field in fields(RollbackSettings) if not field.metadata.get('beside')]
# where keys belong that people look for elsewhere
HOMES = {
    WHERE: SECTION_KEYS,
    "paramwise_cfg.custom_keys['PART OF A NAME']": ['lr_mult', 'decay_mult'],
    'paramwise_cfg': ['rollback', 'layer_decay_rate', *STOCK_KEYS],
    'optimizer': ['lr', 'weight_decay', 'anchor_dtype', 'anchor_device', 'anchor_file'],
    'optim_wrapper': ['paramwise_cfg', 'constructor', 'optimizer', 'accumulative_counts', 'clip_grad'],
}


def check_keys(cfg: Mapping, known: Collection[str], where: str) -> None:
    """Refuse keys of a section that would be ignored, and say the nearest known one, or where they belong."""
    for key in cfg:
        if key in known:
            continue
        home = next((home for home, keys in HOMES.items() if key in keys and home != where), None)
        if home is not None:
            raise ValueError(f'{where}.{key}={cfg[key]!r} stands in the wrong place: it belongs into {home}')
        near = ''.join(f'did you mean {name!r}? ' for name in nearest(key, known))
        raise ValueError(f'{where}: unknown key {key!r} (={cfg[key]!r}); {near}Known keys: {", ".join(known)}')


def as_dict(value: Any, where: str, example: str) -> Mapping:
    """The value itself, if it is a dict; else a ValueError with ``where`` it stands and an example."""
    if not isinstance(value, Mapping):
        raise ValueError(f'{where}={value!r} is not a dict; give one, e.g. {example}')
    return value
