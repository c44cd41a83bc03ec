"""The ``paramwise_cfg.rollback`` section of a config, checked."""

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields

from torch import nn

from ..layers import METHODS, layer_index
from ..optim.penalty import COUPLINGS, HIGHEST, check_levels, check_new, layer_penalty

WHERE = 'paramwise_cfg.rollback'
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

    @classmethod
    def from_cfg(cls, cfg: Mapping | None) -> 'RollbackSettings':
        """Read the section as it stands in a config; None or {} gives the defaults, of its ``rule`` if there is one."""
        cfg = as_dict({} if cfg is None else cfg, WHERE)
        for key in ('anchor_dtype', 'anchor_device', 'anchor_file'):
            if key in cfg:
                raise ValueError(f'{WHERE}.{key}={cfg[key]!r} stands in the wrong place: it belongs into optimizer')
        check_keys(cfg, [field.name for field in fields(cls)], WHERE)
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

    def level(self, layer: int, num_layers: int) -> float:
        """lambda of layer i of n, see :func:`olor_mm.optim.layer_penalty`; for any rule."""
        shape = layer_penalty(layer, num_layers, max_level=1.0, min_level=0.0, power=self.power)
        return float(self.min_level + shape * (self.max_level - self.min_level))

    def __post_init__(self):
        if not isinstance(self.rule, str) or self.rule not in HIGHEST:
            raise ValueError(f'{WHERE}.rule={self.rule!r} is unknown; take one of {", ".join(map(repr, HIGHEST))}')
        check_levels(self.max_level, self.min_level, self.power, f'{WHERE}.', self.rule)
        check_new(self.new_level, self.rule, WHERE)
        if self.new_level and self.level(1, 1) == 0:
            raise ValueError(
                f'{WHERE}.new_level={self.new_level!r} goes to what has a level above 0, and with '
                f'max_level={self.max_level!r}, min_level={self.min_level!r} and power={self.power!r} a new head has '
                'none; leave out power, or raise min_level'
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


def check_keys(cfg: Mapping, known: Collection[str], where: str) -> None:
    """Refuse keys that would be ignored.

    Raises:
        ValueError: The message names the key, its value and the nearest known one.
    """
    for key in cfg:
        if key not in known:
            near = nearest(key, known)
            hint = f'did you mean {near[0]!r}? ' if near else ''
            raise ValueError(f'{where}: unknown key {key!r} (={cfg[key]!r}); {hint}Known keys: {", ".join(known)}')


def nearest(key: str, known: Collection[str]) -> list[str]:
    """The known key that an unknown one may be a typing error of, or none."""
    return difflib.get_close_matches(str(key), known, n=1)


def as_dict(value: Mapping, where: str) -> Mapping:
    """The value itself, if it is a dict.

    Raises:
        ValueError: The message names ``where`` it stands and the value.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f'{where}={value!r} is not a dict')
    return value
