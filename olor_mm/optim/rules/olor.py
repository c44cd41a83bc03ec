"""OLOR (Huang et al., "One Step Learning, One Step Review", AAAI 2024, arXiv 2401.10962).

With theta_0 the anchor and lambda the level of a group::

    theta_hat_t = BaseOptimizer(theta_{t-1}, g_t)                  one step of learning
    theta_t     = lerp(theta_hat_t, theta_0, w_t)                  one step of review
    w_t         = lambda * lr_t / lr_0   (rollback_coupling='lr')
                = lambda                 (rollback_coupling='constant')
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from .base import Batch, Rule


class OLOR(Rule):
    """One step of learning, one step of review: after each step, weights go a share w of the way back."""

    name = 'olor'
    highest = 1.0
    has_share = True
    is_review = True

    def weight(self, group: dict, level: float) -> float | Tensor:
        if group['rollback_coupling'] == 'constant' or level == 0:
            return level
        lr = group['lr']
        initial_lr = group.get('max_lr', group['rollback_initial_lr'])  # one-cycle schedules set their own top rate
        if isinstance(lr, Tensor):  # reading it would wait for its device
            return (level / initial_lr * lr).clamp(0, 1)
        if lr and not initial_lr:
            raise ValueError(
                f"rollback_coupling='lr' needs the rate that the group starts from, and that is 0 here (lr={lr} now): "
                'add the group with the rate that its level is meant for, and let a schedule warm it up'
            )
        return min(max(level * lr / initial_lr, 0.0), 1.0) if lr else 0.0

    @contextmanager
    def around(self, optimizer, group: dict, batches: list[Batch]) -> Iterator[None]:
        yield
        optimizer.pull([(optimizer.rollback_weight(group), params, anchors) for _, params, anchors in batches])
