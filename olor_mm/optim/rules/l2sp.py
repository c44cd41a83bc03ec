"""L2-SP and its decoupled form, baselines for OLOR.

With theta_0 the anchor, alpha = ``rollback``, beta = ``rollback_new`` and g_t the gradient of the loss::

    l2sp            g_t     <- g_t + alpha (theta_{t-1} - theta_0)              anchored
                    g_t     <- g_t + beta theta_{t-1}                           without an anchor
                    theta_t  = BaseOptimizer(theta_{t-1}, g_t)
    l2sp_decoupled  theta_t  = BaseOptimizer(theta_{t-1} - min(1, lr_t alpha) (theta_{t-1} - theta_0), g_t)
                    and the same with beta and 0 for theta_0

- L2-SP (Li, Grandvalet, Davoine, ICML 2018, arXiv 1802.01483): the gradient of ``alpha/2 |theta - theta_0|^2 + beta/2
  |theta_new|^2``, summed over all elements. As torch's ``weight_decay``, it joins after any clipping of gradients.
- Decoupled L2-SP: the same with the decay of AdamW (Loshchilov, Hutter, arXiv 1711.05101), theta_0 for the origin.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor

from .base import Batch, Rule


class L2SP(Rule):
    """L2-SP: the gradient of alpha/2 |theta - theta_0|^2 joins that of the loss."""

    name = 'l2sp'
    symbol = 'alpha'
    defaults: ClassVar[Mapping[str, float]] = dict(power=0.0)
    pulls_new = True

    @contextmanager
    @torch.no_grad()
    def around(self, optimizer, group: dict, batches: list[Batch]) -> Iterator[None]:
        grads = {p: p.grad for _, params, _ in batches for p in params}
        scale = getattr(optimizer, 'grad_scale', None)  # of a GradScaler that leaves the unscaling to a fused kernel
        try:
            for level, params, anchors in batches:
                for p, anchor in zip(params, anchors):
                    pull = optimizer.deviation(p, anchor)
                    pull = pull if scale is None else pull * scale.to(p.device)
                    p.grad = p.grad.add(pull.to(p.grad.dtype), alpha=-level if group.get('maximize') else level)
            yield
        finally:
            for p, grad in grads.items():
                p.grad = grad


class DecoupledL2SP(Rule):
    """Decoupled L2-SP: weights go back by lr alpha before the step, like AdamW's weight decay."""

    name = 'l2sp_decoupled'
    symbol = 'alpha'
    defaults: ClassVar[Mapping[str, float]] = dict(power=0.0)
    pulls_new = True
    has_share = True

    def weight(self, group: dict, level: float) -> float | Tensor:
        way = level * group['lr']
        return way.clamp(0, 1) if isinstance(way, Tensor) else min(max(way, 0.0), 1.0)

    @contextmanager
    def around(self, optimizer, group: dict, batches: list[Batch]) -> Iterator[None]:
        optimizer.pull([(self.weight(group, level), params, anchors) for level, params, anchors in batches])
        yield
