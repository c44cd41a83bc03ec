"""The layer-wise penalty of OLOR, lambda, and the range of its settings."""

import math
from numbers import Real

FLOAT32_MAX = 3.4e38  # rounded down
# of max_level: `min_level` where neck or heads are pre-trained and it is not given. Without it a detector forgets, see
# docs/en/choosing_how_strong.md
SHARE_OF_HEADS = 0.3
HINTS = dict(
    max_level='it is the share of the way back that a step takes nearest the input, usually 0 to 0.1',
    min_level='it is the share of the way back that a step takes in neck and head, usually 0 to 0.1',
    power='0 is max_level in every layer, 1 a linear decay over depth, and more a faster one',
    max_drift='it is the share of its norm that a tensor may move, e.g. 0.05, or (0.02, 0.1) from input to head',
)


def is_number(value) -> bool:
    """Whether a value of a config is a finite number that a float can hold."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # of an integer
        return False


def check_number(name: str, value, hint: str, highest: float = FLOAT32_MAX) -> None:
    """Refuse what is not a number in [0, highest], by a ValueError with name, value, range and hint."""
    if not is_number(value) or not 0 <= value <= highest:
        raise ValueError(f'{name}={value!r} is not a number in [0, {highest:g}]; {hint}')


def check_levels(max_level: float, min_level: float, power: float, where: str = '', highest: float = 1.0) -> None:
    """Refuse settings of the layer-wise penalty that are out of range.

    Args:
        max_level (float): iota_1, lambda of the layer nearest the input.
        min_level (float): iota_2, lambda of the last layer, at most ``max_level``.
        power (float): gamma >= 0, the exponent of the decay over depth.
        where (str): Prefix of the names in a message, e.g. ``'paramwise_cfg.rollback.'``.
        highest (float): The highest level that the rule allows. Defaults to 1.

    Raises:
        ValueError: The message has the key, its value and the range.
    """
    check_number(f'{where}max_level', max_level, HINTS['max_level'], highest)
    check_number(f'{where}min_level', min_level, HINTS['min_level'], highest)
    check_number(f'{where}power', power, HINTS['power'])
    if min_level > max_level:
        raise ValueError(f'{where}min_level={min_level!r} is above {where}max_level={max_level!r}; lower min_level')


def layer_penalty(
    layer: int, num_layers: int, max_level: float, min_level: float, power: float, highest: float = 1.0
) -> float:
    """lambda_i = iota_2 + (1 - i/n)^gamma (iota_1 - iota_2), the layer-wise penalty of arXiv 2401.10962.

    Args:
        layer (int): i, from 0 (nearest the input) to ``num_layers``.
        num_layers (int): n; a model of one layer has n = 0 and takes ``max_level``.
        max_level (float): iota_1 in [0, highest].
        min_level (float): iota_2 in [0, iota_1].
        power (float): gamma >= 0.
        highest (float): The highest level that the rule allows. Defaults to 1.

    Returns:
        float: lambda_i in [min_level, max_level].

    Raises:
        ValueError: If a setting is out of range or ``layer`` is not in [0, num_layers].

    >>> [layer_penalty(i, 4, max_level=0.01, min_level=0., power=1.) for i in (0, 2, 4)]
    [0.01, 0.005, 0.0]
    """
    check_levels(max_level, min_level, power, highest=highest)
    if not 0 <= layer <= num_layers:
        raise ValueError(f'layer={layer} is outside [0, num_layers={num_layers}]')
    shallowness = 1 - layer / num_layers if num_layers else 1.0
    return float(min_level + shallowness**power * (max_level - min_level))


def check_budget(name: str, value) -> None:
    """Refuse what is neither a drift budget, a number above 0, nor two of them for the first and the last layer."""
    for number in value if isinstance(value, (list, tuple)) and len(value) == 2 else [value]:
        if not is_number(number) or not 0 < number <= FLOAT32_MAX:
            raise ValueError(f'{name}={value!r} is not a number above 0, or two of them; {HINTS["max_drift"]}')


def layer_budget(layer: int, num_layers: int, max_drift: float | tuple[float, float], power: float = 1.0) -> float:
    """b_i = b_0 + (i/n)^gamma (b_n - b_0), the drift budget of a layer.

    Args:
        layer (int): i, from 0 (nearest the input) to ``num_layers``.
        num_layers (int): n; a model of one layer has n = 0 and takes b_0.
        max_drift (float or (float, float)): b_0 and b_n; one number for all layers.
        power (float): gamma >= 0.

    Returns:
        float: b_i, between b_0 and b_n.

    >>> [round(layer_budget(i, 4, (0.02, 0.1)), 3) for i in (0, 2, 4)]
    [0.02, 0.06, 0.1]
    """
    shallow, deep = max_drift if isinstance(max_drift, (list, tuple)) else (max_drift, max_drift)
    depth = layer / num_layers if num_layers else 0.0
    return float(shallow + depth**power * (deep - shallow))


def half_life_of(weight: float) -> float:
    """Steps in which a deviation that no gradient feeds is halved: each multiplies it by 1 - w, w in [0, 1].

    >>> round(half_life_of(0.01), 2)
    68.97
    """
    if weight == 0:
        return math.inf
    return 0.0 if weight == 1 else -math.log(2) / math.log1p(-weight)
