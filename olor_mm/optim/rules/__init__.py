"""The rules by which weights return to their pre-trained values: OLOR, and the baselines it is compared with.

A rule is a subclass of :class:`Rule` in a file of its own and an entry of :data:`RULES`.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from torch.nn import Parameter

from ..anchors import NO_ANCHOR
from ..penalty import check_number
from .base import Batch, Rule
from .drift import Drift
from .l2sp import L2SP, DecoupledL2SP
from .olor import OLOR
from .spd import SPD

__all__ = ['COUPLINGS', 'RULES', 'Rule', 'apply_budget', 'around_step', 'check_new', 'check_rollback', 'rule_named']

#: Whether w follows the learning rate: values of ``rollback_coupling``.
COUPLINGS = ('lr', 'constant')
#: Every rule by its name; a rule of your own is one more entry.
RULES: dict[str, Rule] = {rule.name: rule for rule in (OLOR(), L2SP(), DecoupledL2SP(), SPD(), Drift())}


def rule_named(name, where: str) -> Rule:
    """The rule of a name.

    Args:
        name (str): A key of :data:`RULES`, e.g. 'olor'.
        where (str): The option that has the name, for the message.

    Raises:
        ValueError: If there is no such rule.
    """
    if not isinstance(name, str) or name not in RULES:
        raise ValueError(f'{where}={name!r} is unknown; take one of {", ".join(map(repr, RULES))}')
    return RULES[name]


def check_new(rule: Rule, new: float, name: str) -> None:
    """Refuse a beta that is out of range, or that the rule does not use.

    Args:
        rule (Rule): The rule of the group.
        new (float): beta, 0 or more.
        name (str): The option that has it, for the message.

    Raises:
        ValueError: The message has the option, its value and what to do.
    """
    check_number(name, new, 'it is beta of L2-SP, e.g. 0.01')
    if new and not rule.pulls_new:
        users = ', '.join(repr(other.name) for other in RULES.values() if other.pulls_new)
        raise ValueError(f'{name}={new!r} is an option of the rules {users}, and this is {rule.name!r}; leave it out')


def apply_budget(group: dict, where: str) -> None:
    """Where a parameter group has a drift budget, make it the strength of the rule 'drift'.

    Args:
        group (dict): A parameter group with ``rollback``, ``rollback_drift`` and ``rollback_rule``; changed in place.
        where (str): The group, for the message.

    Raises:
        ValueError: If the budget is no number of at least 0, or the group has a level too.
    """
    budget = group['rollback_drift']
    check_number(f'{where}: rollback_drift', budget, 'it is the share of its norm that a tensor may move, e.g. 0.05')
    if budget and group['rollback']:
        fault = f'rollback={group["rollback"]!r} and rollback_drift={budget!r}'
        raise ValueError(f'{where}: {fault} are two ways to say how strongly to pull; leave one out')
    if budget:
        group.update(rollback=budget, rollback_rule='drift')
    elif group['rollback_rule'] == 'drift':
        group['rollback_drift'] = group['rollback']


def check_rollback(group: dict, where: str) -> None:
    """Refuse the rollback options of a parameter group that are unknown or out of range.

    Args:
        group (dict): A parameter group with all options of :class:`olor_mm.optim.Rollback`.
        where (str): The group, for the message.

    Raises:
        ValueError: The message has the option, its value and what to do.
    """
    rule = rule_named(group['rollback_rule'], f'{where}: rollback_rule')
    hint = f'it is {rule.symbol} of the rule {rule.name!r}, e.g. 0.01'
    check_number(f'{where}: rollback', group['rollback'], hint, rule.highest)
    coupling = group['rollback_coupling']
    if not isinstance(coupling, str) or coupling not in COUPLINGS:
        raise ValueError(f"{where}: rollback_coupling={coupling!r} is unknown; take 'lr' or 'constant'")
    check_new(rule, group['rollback_new'], f'{where}: rollback_new')


@contextmanager
def around_step(optimizer, groups: list[dict], closure: Callable | None) -> Iterator[Callable | None]:
    """Apply the rule of every group around a step of the base optimizer, which is made in the body.

    Args:
        optimizer (Rollback): It gives the anchors.
        groups (list[dict]): The parameter groups that are stepped.
        closure (Callable or None): That of the step.

    Yields:
        Callable or None: The closure for that step: rules begin when gradients are there, so after the closure.
    """
    # collected now: the base optimizer does not see all anchors while it steps
    active = [group for group in groups if group['rollback'] or group['rollback_new']]
    anchored = [[(p, optimizer.anchor_of(p)) for p in group['params']] for group in active]
    with ExitStack() as stack:

        def begin() -> None:
            for group, pairs in zip(active, anchored):
                if batches := _batches(group, pairs, optimizer.partial):
                    stack.enter_context(RULES[group['rollback_rule']].around(optimizer, group, batches))

        def evaluate():
            loss = closure()  # type: ignore[misc]  # used only where there is one
            begin()
            return loss

        if closure is None:
            begin()
        yield closure and evaluate


def _batches(group: dict, pairs: list[tuple[Parameter, Tensor | None]], partial: set[Parameter]) -> list[Batch]:
    pairs = [(p, anchor) for p, anchor in pairs if p.grad is not None]
    old = [(p, anchor) for p, anchor in pairs if anchor is not None]
    new = [(p, torch.zeros_like(p)) for p, anchor in pairs if anchor is None and group['rollback_new']]
    if group['rollback_new']:  # what is free of an anchor goes to 0, and the rest of it has none there
        new += [(p, torch.where(anchor.isnan(), 0.0, NO_ANCHOR)) for p, anchor in old if p in partial]
    levels = ((group['rollback'], old), (group['rollback_new'], new))
    return [(level, [p for p, _ in some], [a for _, a in some]) for level, some in levels if some and level]
