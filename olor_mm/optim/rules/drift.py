"""A drift budget: no tensor moves further from its pre-trained value than a share of that value's norm.

With theta_0 the anchor and b the budget of a group, ``rollback_drift``, for each parameter tensor::

    theta_hat_t = BaseOptimizer(theta_{t-1}, g_t)                    one step of learning
    theta_t     = lerp(theta_hat_t, theta_0, w_t)                    one step of review
    w_t         = min(1, ||theta_hat_t - theta_{t-1}|| / (b ||theta_0||))

If ||theta_{t-1} - theta_0|| = d <= r = b ||theta_0|| and the step has the length x <= r, then ||theta_t - theta_0|| <=
(1 - x / r) (d + x) <= r - x^2 / r <= r; if x > r, w = 1. So drift never exceeds the budget, whatever the optimizer, the
learning rate, its schedule and the length of training. A shard of a tensor is held to its own share of the norm.

||theta_0|| of a tensor that is zero or tiny is taken from the tensors beside it, see ``AnchoredState.norm_of``.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..anchors import local
from .base import Batch, Rule


class Drift(Rule):
    """After each step, a tensor goes back by the share of its budget that the step was long."""

    name = 'drift'
    symbol = 'the budget'
    is_drift = True

    @contextmanager
    @torch.no_grad()
    def around(self, optimizer, group: dict, batches: list[Batch]) -> Iterator[None]:
        copies = [[_in_full(p).clone() for p in local(params)] for _, params, _ in batches]
        yield
        pulls = []
        for (budget, params, anchors), before in zip(batches, copies):
            torch._foreach_sub_(before, [_in_full(p) for p in local(params)])
            for p, anchor, step in zip(params, local(anchors), before):
                if p in optimizer.partial:
                    step.masked_fill_(anchor.isnan().to(step.device), 0)
            # where nothing at all has a norm, a radius that every step exceeds
            radii = [budget * optimizer.norm_of(p) or torch.finfo(torch.float32).tiny for p in params]
            weights = list(torch._foreach_div(torch._foreach_norm(before), radii))
            torch._foreach_clamp_max_(weights, 1.0)
            pulls.append((weights, params, anchors))
        optimizer.pull(pulls)


def _in_full(p: Tensor) -> Tensor:
    """A parameter in which a step does not vanish by rounding: in float32 where it has 16 bits."""
    return p.detach().float() if p.element_size() < 4 else p.detach()
