"""The layer-wise penalty of OLOR: how strongly a layer is pulled back, and what it may be set to."""

import math
from numbers import Real

COUPLINGS = ('lr', 'constant')
FLOAT32_MAX = 3.4e38  # rounded down
# level that a rule has a meaning for
HIGHEST = dict(olor=1.0, l2sp=FLOAT32_MAX, l2sp_decoupled=FLOAT32_MAX, spd=FLOAT32_MAX)


def is_number(value) -> bool:
    """Whether a value of a config is a finite number; one that a float can hold."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # of an integer
        return False


def check_levels(max_level: float, min_level: float, power: float, where: str = '', rule: str = 'olor') -> None:
    """Refuse settings with which the layer-wise penalty is not a weight in [0, 1].

    Args:
        max_level (float): iota_1, the penalty of the layer nearest the input.
        min_level (float): iota_2, the penalty of the last layer.
        power (float): gamma, the exponent of the decay over depth.
        where (str): Put before every name in the message, e.g. ``'paramwise_cfg.rollback.'``.
        rule (str): What the levels are for; other rules than 'olor' have no upper limit.

    Raises:
        ValueError: The message names the key, its value and the range.
    """
    for name, value in (('max_level', max_level), ('min_level', min_level), ('power', power)):
        if not is_number(value):
            raise ValueError(
                f'{where}{name}={value!r} is not a finite number; give one, e.g. {name}='
                f'{dict(max_level=1e-2, min_level=0.0, power=1.0)[name]}'
            )
    for name, value in (('max_level', max_level), ('min_level', min_level)):
        if value < 0 and rule != 'olor':
            raise ValueError(
                f'{where}{name}={value!r} is negative: with rule={rule!r} it would push away from '
                'theta_0; give 0 or more'
            )
        if value > HIGHEST[rule] and rule != 'olor':
            raise ValueError(f'{where}{name}={value!r} is more than float32 can hold; give less, e.g. 1')
        if not 0 <= value <= HIGHEST[rule]:
            raise ValueError(
                f'{where}{name}={value!r} is outside [0, 1]: it is the share of the way back to the '
                f'pre-trained weights that one step takes; usual values lie between 0 and 0.1'
            )
    if min_level > max_level:
        raise ValueError(
            f'{where}min_level={min_level!r} is above {where}max_level={max_level!r}: shallow layers are '
            f'pulled back the most; swap the two or lower min_level'
        )
    if power < 0:
        raise ValueError(
            f'{where}power={power!r} is negative; give 0 for max_level in every layer, 1 for a linear decay over depth'
            ', more to keep the pull to the shallowest layers'
        )


def layer_penalty(layer: int, num_layers: int, max_level: float, min_level: float, power: float) -> float:
    """lambda_i = iota_2 + (1 - i/n)^gamma (iota_1 - iota_2), the layer-wise penalty of arXiv 2401.10962.

    Args:
        layer (int): i, from 0 (nearest the input) to ``num_layers``.
        num_layers (int): The n of the formula; a model of one layer has n = 0 and takes ``max_level``.
        max_level (float): iota_1 in [0, 1].
        min_level (float): iota_2 in [0, iota_1].
        power (float): gamma >= 0.

    Returns:
        float: lambda_i in [min_level, max_level].

    Raises:
        ValueError: If a setting is out of range or ``layer`` is not in [0, num_layers].

    >>> [layer_penalty(i, 4, max_level=0.01, min_level=0., power=1.) for i in (0, 2, 4)]
    [0.01, 0.005, 0.0]
    """
    check_levels(max_level, min_level, power)
    if not 0 <= layer <= num_layers:
        raise ValueError(f'layer={layer} is outside [0, num_layers={num_layers}]')
    shallowness = 1 - layer / num_layers if num_layers else 1.0
    return float(min_level + shallowness**power * (max_level - min_level))


def half_life_of(weight: float) -> float:
    """Steps in which a deviation that nothing feeds is halved, if each takes the share w of the way back.

    A step multiplies it by 1 - w, so that is -1 / log2(1 - w), for small w about ln 2 / w.

    Args:
        weight (float): w in [0, 1].

    Returns:
        float: From 0, where one step takes all of the way, to inf, without rollback.

    >>> round(half_life_of(0.01), 2)
    68.97
    """
    if weight == 0:
        return math.inf
    return 0.0 if weight == 1 else -math.log(2) / math.log1p(-weight)


def level_of(half_life: float) -> float:
    """w = 1 - 2^(-1 / h), with which a deviation that nothing feeds is halved in h steps.

    Args:
        half_life (float): h > 0, in steps.

    Returns:
        float: In (0, 1].
    """
    return -math.expm1(-math.log(2) / half_life)


def check_rollback(rollback: float, coupling: str, rule: str, new: float, where: str) -> None:
    """Refuse an unknown coupling or rule, and levels that the rule has no meaning for.

    Args:
        rollback (float): lambda of a parameter group.
        coupling (str): Its ``rollback_coupling``.
        rule (str): Its ``rollback_rule``.
        new (float): Its ``rollback_new``.
        where (str): Put before the message.

    Raises:
        ValueError: The message names ``where`` it stands, the key, the value and what would be right.
    """
    if not isinstance(rule, str) or rule not in HIGHEST:
        raise ValueError(f'{where}: rollback_rule={rule!r} is unknown; take one of {", ".join(HIGHEST)}')
    if not is_number(rollback) or not 0 <= rollback <= HIGHEST[rule]:
        raise ValueError(
            f'{where}: rollback={rollback!r} is not a number in [0, 1]; it is the share of the way back '
            'to the pre-trained weights that one step takes; usual values lie between 0 and 0.1'
            if rule == 'olor'
            else f'{where}: rollback={rollback!r} is not a finite number of 0 or more (in float32); give one, e.g. '
            f'0.01, for rollback_rule={rule!r}'
        )
    if not isinstance(coupling, str) or coupling not in COUPLINGS:
        raise ValueError(f'{where}: rollback_coupling={coupling!r} is unknown; take one of {", ".join(COUPLINGS)}')
    check_new(new, rule, where, 'rollback_new', 'rollback_rule')


def check_new(new: float, rule: str, where: str, key: str = 'new_level', rule_key: str = 'rule') -> None:
    """Refuse a beta that is no finite number of 0 or more, or that the rule has no use for.

    Raises:
        ValueError: The message names ``where`` it stands, the ``key``, the value and what would be right.
    """
    if not is_number(new) or new < 0:
        raise ValueError(f'{where}: {key}={new!r} is not a finite number of 0 or more; it is beta of L2-SP, e.g. 0.01')
    if new and rule not in ('l2sp', 'l2sp_decoupled'):
        raise ValueError(
            f'{where}: {key}={new!r} has no meaning with {rule_key}={rule!r}, which leaves new layers to the '
            f"optimizer; set it to 0, or {rule_key}='l2sp'"
        )
