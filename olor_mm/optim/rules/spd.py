"""SPD, Selective Projection Decay (Tian, Huang, Kira, NeurIPS 2024, arXiv 2411.01713, and its AdamSPD), a baseline.

With theta_0 the anchor, alpha = ``rollback`` and g_t the gradient of the loss::

    theta~_t = BaseOptimizer(theta_{t-1}, g_t)
    theta_t  = theta~_t - alpha r_t (theta~_t - theta_0)        if -<g_t, theta_{t-1} - theta_0> < 0
    r_t      = max(0, |theta~_t - theta_0| - |theta_{t-1} - theta_0|) / |theta~_t - theta_0|

A tensor is taken back where its gradient descends towards theta_0 while the step, by momentum, still leads away. Norms
and inner product are those of one parameter tensor. AdamSPD anchors new layers at their random start; here they are
free.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

import torch

from .base import Batch, Rule


class SPD(Rule):
    """Selective Projection Decay: tensors whose gradient leads back and whose step leads away are taken back."""

    name = 'spd'
    defaults: ClassVar[Mapping[str, float]] = dict(max_level=1.0, power=0.0)

    @contextmanager
    @torch.no_grad()
    def around(self, optimizer, group: dict, batches: list[Batch]) -> Iterator[None]:
        before = []
        for level, params, anchors in batches:
            for p, anchor in zip(params, anchors):
                if hasattr(p, 'to_local') or getattr(p, '_fsdp_flattened', False):
                    raise ValueError(
                        "rollback_rule='spd' compares whole parameter tensors, and FSDP has made shards of them: take "
                        'DistributedDataParallel or ZeroRedundancyOptimizer, or another rule'
                    )
                deviation = optimizer.deviation(p, anchor)
                slope = (p.grad * deviation).sum()
                before.append((level, p, anchor, slope < 0 if group.get('maximize') else slope > 0, deviation.norm()))
        yield
        pulls = []
        for level, p, anchor, turns_back, radius in before:
            reached = optimizer.deviation(p, anchor).norm()
            ratio = torch.where(turns_back & (reached > radius), (reached - radius) / reached, 0)
            pulls.append((level * ratio, [p], [anchor]))
        optimizer.pull(pulls)
