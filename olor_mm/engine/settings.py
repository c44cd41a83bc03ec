"""The ``paramwise_cfg.rollback`` section of a config, checked."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import nn

from ..layers import METHODS, layer_index
from ..names import nearest
from ..optim.penalty import COUPLINGS, HIGHEST, check_levels, check_new, layer_penalty, level_of

WHERE = 'paramwise_cfg.rollback'
HALF_LIFE = re.compile(r'(\d+(?:\.\d+)?) ?(epochs?|iters?|%)')
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
ANCHOR_KEYS = ('anchor_dtype', 'anchor_device', 'anchor_file')
OF_RULE = dict(l2sp=dict(power=0.0), l2sp_decoupled=dict(power=0.0), spd=dict(max_level=1.0, power=0.0))  # defaults


@dataclass(frozen=True)
class RollbackSettings:
    """How strongly each layer is pulled back, and which parameters count as pre-trained.

    Args:
        rule (str): 'olor', or what to compare it with, see :mod:`olor_mm.optim.rules`: 'l2sp', 'l2sp_decoupled', 'spd'.
            Their alpha or lambda is ``max_level``, in all layers unless ``power`` is above 0. Defaults to 'olor'.
        max_level (float): iota_1, lambda of the layer nearest the input, in [0, 1], of other rules in [0, inf).
            Defaults to 0.01, in a config with 'spd' to 1.
        min_level (float): iota_2, lambda of neck and head, in [0, max_level]. Defaults to 0.
        power (float): gamma >= 0, the decay of lambda over depth. Defaults to 1, in a config with another rule to 0.
        pretrained (str or list[str]): 'auto' takes the parameters that a checkpoint was loaded into, 'all' takes all,
            a list takes those under these prefixes, e.g. ``['backbone']``. Defaults to 'auto'.
        layer_index (str or dict[str, int]): 'block' or 'tensor', see :func:`olor_mm.layers.layer_index`, or a dict
            from prefixes to layer numbers that overrides 'block'. Defaults to 'block'.
        coupling (str): 'lr' lets w of 'olor' follow the learning rate schedule, 'constant' does not. Defaults to 'lr'.
        new_level (float): beta of L2-SP: what was not pre-trained is pulled to 0 by it. Defaults to 0.
        half_life (str, optional): Instead of ``max_level``, with 'olor': in what time a deviation of the layer nearest
            the input is halved, at the learning rate that a group starts from: '3 epochs', '500 iters' or '10 %' of the
            run. ``max_level`` is 1 then, until the length of the run is known. Defaults to none.

    Raises:
        ValueError: The message names the key, its value and what would be right.
    """

    max_level: float = 1e-2
    min_level: float = 0.0
    power: float = 1.0
    pretrained: str | list[str] = 'auto'
    layer_index: str | dict[str, int] = 'block'
    coupling: str = 'lr'
    rule: str = 'olor'
    new_level: float = 0.0
    half_life: str | None = None

    @classmethod
    def from_cfg(cls, cfg: Mapping) -> 'RollbackSettings':
        """Read the section as it stands in a config; {} gives the defaults, of its ``rule`` if there is one."""
        cfg = as_dict(cfg, WHERE, 'dict(max_level=1e-2); max_level=0 is a run without rollback')
        check_keys(cfg, [field.name for field in fields(cls)], WHERE)
        if cfg.get('half_life') is not None:
            if cfg.get('max_level') is not None:
                raise ValueError(
                    f'{WHERE}.half_life={cfg["half_life"]!r} and max_level={cfg["max_level"]!r} say the same thing: '
                    'keep one of them; max_level=None drops the one of a base config'
                )
            cfg = {**cfg, 'max_level': 1.0}
        rule = cfg.get('rule')
        return cls(**{**(OF_RULE.get(rule, {}) if isinstance(rule, str) else {}), **cfg})

    def index(self, model: nn.Module) -> dict[str, tuple[int, int]]:
        """The layer (i, n) of every parameter by name, as ``layer_index`` of the config wants it.

        Raises:
            ValueError: If an override matches no parameter or is out of range.
        """
        if isinstance(self.layer_index, str):
            return layer_index(model, self.layer_index)
        return layer_index(model, overrides=self.layer_index)

    def half_life_steps(self, max_iters: int, max_epochs: int, accumulative_counts: int) -> float:
        """``half_life`` in steps of the optimizer.

        Args:
            max_iters (int): Iterations of the run.
            max_epochs (int): Its epochs; loops that count iterations have 1.
            accumulative_counts (int): Iterations to a step.

        Raises:
            ValueError: If it is in epochs, and the run has one or counts none.
        """
        number, unit = HALF_LIFE.fullmatch(self.half_life or '').groups()  # type: ignore[union-attr]  # checked before
        if unit.startswith('epoch') and max_epochs <= 1:
            raise ValueError(
                f'{WHERE}.half_life={self.half_life!r}: this run is of a single epoch or counts iterations, so that it '
                "does not say how long an epoch is; give it as '500 iters' or '10 %' of the run"
            )
        lengths = {'%': max_iters / 100, 'e': max_iters / max_epochs, 'i': 1}
        return float(number) * lengths[unit[0]] / accumulative_counts

    def resolved(self, steps: float) -> 'RollbackSettings':
        """The same with the ``max_level`` that a half-life of so many steps means.

        Raises:
            ValueError: If that is below ``min_level``.
        """
        max_level = level_of(steps)
        if self.min_level > max_level:
            raise ValueError(
                f'{WHERE}.min_level={self.min_level!r} is above the max_level={max_level:.3g} that half_life='
                f'{self.half_life!r} means in this run, {steps:.4g} steps; lower min_level'
            )
        return replace(self, max_level=max_level)

    @property
    def is_uniform(self) -> bool:
        """Whether the level is the same in all layers."""
        return self.power == 0 or self.min_level == self.max_level

    def level(self, layer: int, num_layers: int) -> float:
        """lambda of layer i of n, see :func:`olor_mm.optim.layer_penalty`; for any rule."""
        shape = layer_penalty(layer, num_layers, max_level=1.0, min_level=0.0, power=self.power)
        return float(self.min_level + shape * (self.max_level - self.min_level))

    def __post_init__(self):
        if not isinstance(self.rule, str) or self.rule not in HIGHEST:
            raise ValueError(f'{WHERE}.rule={self.rule!r} is unknown; take one of {", ".join(map(repr, HIGHEST))}')
        check_levels(self.max_level, self.min_level, self.power, f'{WHERE}.', self.rule)
        check_new(self.new_level, self.rule, WHERE)
        if self.half_life is not None:
            self._check_half_life()
        if self.new_level and self.level(1, 1) == 0:
            raise ValueError(
                f'{WHERE}.new_level={self.new_level!r} goes to what has a level above 0, and with '
                f'max_level={self.max_level!r}, min_level={self.min_level!r} and power={self.power!r} a new head has '
                f'none; {"raise max_level" if self.max_level == 0 else "leave out power, or raise min_level"}'
            )
        if self.rule != 'olor' and self.coupling != 'lr':
            raise ValueError(
                f"{WHERE}.coupling={self.coupling!r} is an option of rule='olor', and this is rule={self.rule!r}; "
                'leave it out'
            )
        by_prefix = (
            isinstance(self.pretrained, (list, tuple))
            and self.pretrained
            and all(isinstance(prefix, str) for prefix in self.pretrained)
        )
        by_word = isinstance(self.pretrained, str) and self.pretrained in ('auto', 'all')
        if not by_word and not by_prefix:
            raise ValueError(
                f"{WHERE}.pretrained={self.pretrained!r} is unknown; take 'auto' (what was loaded), 'all', or "
                "a list of prefixes of parameter names, e.g. ['backbone']"
            )
        by_layer = isinstance(self.layer_index, Mapping) and all(isinstance(key, str) for key in self.layer_index)
        if not by_layer and not (isinstance(self.layer_index, str) and self.layer_index in METHODS):
            raise ValueError(
                f'{WHERE}.layer_index={self.layer_index!r} is unknown; take one of '
                f'{", ".join(map(repr, METHODS))}, or a dict from prefixes to layer numbers, e.g. '
                "{'backbone.conv1': 0}"
            )
        if not isinstance(self.coupling, str) or self.coupling not in COUPLINGS:
            raise ValueError(
                f'{WHERE}.coupling={self.coupling!r} is unknown; take one of {", ".join(map(repr, COUPLINGS))}'
            )

    def _check_half_life(self) -> None:
        found = HALF_LIFE.fullmatch(self.half_life) if isinstance(self.half_life, str) else None
        if not found or not float(found[1]):
            raise ValueError(
                f'{WHERE}.half_life={self.half_life!r} is not a time above 0 with its unit; give epochs, iterations or '
                "a share of the run: '3 epochs', '500 iters' or '10 %'"
            )
        if self.rule != 'olor':
            raise ValueError(
                f"{WHERE}.half_life={self.half_life!r} is an option of rule='olor', and this is rule={self.rule!r}; "
                'give its max_level'
            )


# where keys belong that people look for elsewhere
HOMES = {
    WHERE: [field.name for field in fields(RollbackSettings)],
    "paramwise_cfg.custom_keys['PART OF A NAME']": ['lr_mult', 'decay_mult'],
    'paramwise_cfg': ['rollback', 'layer_decay_rate', *STOCK_KEYS],
    'optimizer': ['lr', 'weight_decay', 'momentum', 'betas', 'eps', 'foreach', 'fused', *ANCHOR_KEYS],
    'optim_wrapper': ['paramwise_cfg', 'constructor', 'optimizer', 'accumulative_counts', 'clip_grad'],
    'optim_wrapper.clip_grad': ['max_norm', 'norm_type'],
}


def check_keys(cfg: Mapping, known: Collection[str], where: str, hint: str = '') -> None:
    """Refuse keys that would be ignored.

    Args:
        cfg (Mapping): A section of a config.
        known (Collection[str]): Its keys.
        where (str): Its place.
        hint (str): Put at the end of the message.

    Raises:
        ValueError: The message names the key, its value and the nearest known one, or where it belongs.
    """
    for key in cfg:
        if key not in known:
            home = next((home for home, keys in HOMES.items() if key in keys and home != where), None)
            if home is not None:
                place = f'{where}.{key}={cfg[key]!r} stands in the wrong place: it belongs into {home}'
                raise ValueError(f'{place}. {hint}'.rstrip('. '))
            near = nearest(key, known)
            near = f'did you mean {near[0]!r}? ' if near else ''
            keys = f'Known keys: {", ".join(known)}' if known else 'it takes none; leave it out'
            raise ValueError(f'{where}: unknown key {key!r} (={cfg[key]!r}); {near}{keys}. {hint}'.rstrip('. '))


def as_dict(value: Any, where: str, example: str) -> Mapping:
    """The value itself, if it is a dict.

    Raises:
        ValueError: The message names ``where`` it stands, the value and an example.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f'{where}={value!r} is not a dict; give one, e.g. {example}')
    return value
