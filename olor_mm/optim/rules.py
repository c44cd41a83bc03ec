"""The other rules of the anchored engine: baselines, with the anchors, the state and the provenance of OLOR.

theta_0 is the anchor, alpha = ``rollback`` and beta = ``rollback_new`` of a group, g_t the gradient of the loss::

    l2sp            g_t     <- g_t + alpha (theta_{t-1} - theta_0)              anchored
                    g_t     <- g_t + beta theta_{t-1}                           without an anchor
                    theta_t  = BaseOptimizer(theta_{t-1}, g_t)
    l2sp_decoupled  theta_t  = BaseOptimizer(theta_{t-1} - min(1, lr_t alpha) (theta_{t-1} - theta_0), g_t)
                    and so with beta and 0
    spd             theta~_t = BaseOptimizer(theta_{t-1}, g_t)
                    theta_t  = theta~_t - alpha r_t (theta~_t - theta_0)        if -<g_t, theta_{t-1} - theta_0> < 0
                    r_t      = max(0, |theta~_t - theta_0| - |theta_{t-1} - theta_0|) / |theta~_t - theta_0|

- L2-SP (Li, Grandvalet, Davoine, ICML 2018, arXiv 1802.01483): the gradient of ``alpha/2 |theta - theta_0|^2 + beta/2
  |theta_new|^2``, summed over all elements. As torch's ``weight_decay``, it joins after any clipping of gradients.
- Decoupled L2-SP: the same with the decay of AdamW (Loshchilov, Hutter, arXiv 1711.05101), theta_0 for the origin.
- SPD, Selective Projection Decay (Tian, Huang, Kira, NeurIPS 2024, arXiv 2411.01713, and its AdamSPD): a tensor is
  taken back where its gradient descends towards theta_0 while the step, by momentum, still leads away. Norms and inner
  product are those of one parameter tensor. AdamSPD anchors new layers at their random start; here they are free.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from torch.nn import Parameter

Batch = tuple[float, list[Parameter], list[Tensor]]  # level, parameters, what they are pulled to


def share(group: dict, level: float) -> float | Tensor:
    """The share of the way back that a step takes by itself, in [0, 1]; 0 for rules in which it is not a fixed one."""
    if group['rollback_rule'] != 'l2sp_decoupled':
        return 0.0
    way = level * group['lr']
    return way.clamp(0, 1) if isinstance(way, Tensor) else min(max(way, 0.0), 1.0)


@contextmanager
def other_rules(optimizer, closure: Callable | None) -> Iterator[Callable | None]:
    """Apply every rule but 'olor' around a step of the base optimizer, which is to be made in the body.

    Args:
        optimizer (Rollback): Its anchors have been captured.
        closure (Callable or None): Of that step. The rules start when gradients are there, after it.

    Yields:
        Callable or None: The closure to make the step with.

    Raises:
        ValueError: If a rule cannot do with a parameter that is a shard.
    """
    # anchors are asked for now: a few are hidden from the base optimizer while it steps
    groups = [group for group in optimizer.param_groups if group['rollback_rule'] != 'olor']
    anchored = [[(p, optimizer._anchor(p)) for p in group['params']] for group in groups]
    with ExitStack() as stack:

        def start() -> None:
            for group, pairs in zip(groups, anchored):
                stack.enter_context(RULES[group['rollback_rule']](optimizer, group, _batches(group, pairs)))

        def evaluate():
            loss = closure()  # type: ignore[misc]  # this is handed out only where there is one
            start()
            return loss

        if closure is None:
            start()
        yield closure and evaluate
    if optimizer._files.entries:
        optimizer._files.release(a for pairs in anchored for _, a in pairs if a is not None)


def _batches(group: dict, pairs: list[tuple[Parameter, Tensor | None]]) -> list[Batch]:
    pairs = [(p, anchor) for p, anchor in pairs if p.grad is not None]
    old = [(p, anchor) for p, anchor in pairs if anchor is not None]
    new = [(p, torch.zeros_like(p)) for p, anchor in pairs if anchor is None and group['rollback_new']]
    levels = ((group['rollback'], old), (group['rollback_new'], new))
    return [(level, [p for p, _ in some], [a for _, a in some]) for level, some in levels if some and level]


def _deviation(p: Parameter, anchor: Tensor) -> Tensor:
    return p - anchor.to(p.device, p.dtype, non_blocking=True)


@contextmanager
@torch.no_grad()
def _l2sp(optimizer, group: dict, batches: list[Batch]) -> Iterator[None]:
    """L2-SP: the gradient of alpha/2 |theta - theta_0|^2 joins that of the loss."""
    grads = {p: p.grad for _, params, _ in batches for p in params}
    scale = getattr(optimizer, 'grad_scale', None)  # of a GradScaler that leaves the unscaling to a fused kernel
    try:
        for level, params, anchors in batches:
            for p, anchor in zip(params, anchors):
                pull = _deviation(p, anchor)
                pull = pull if scale is None else pull * scale.to(p.device)
                p.grad = p.grad.add(pull.to(p.grad.dtype), alpha=-level if group.get('maximize') else level)
        yield
    finally:
        for p, grad in grads.items():
            p.grad = grad


@contextmanager
@torch.no_grad()
def _l2sp_decoupled(optimizer, group: dict, batches: list[Batch]) -> Iterator[None]:
    """Decoupled L2-SP: weights go back by lr alpha before the step, like AdamW's weight decay."""
    optimizer._pull([(share(group, level), params, anchors) for level, params, anchors in batches])
    yield


@contextmanager
@torch.no_grad()
def _spd(optimizer, group: dict, batches: list[Batch]) -> Iterator[None]:
    """Selective Projection Decay: tensors whose gradient leads back and whose step leads away are taken back."""
    before = []
    for level, params, anchors in batches:
        for p, anchor in zip(params, anchors):
            if hasattr(p, 'to_local') or getattr(p, '_fsdp_flattened', False):
                raise ValueError(
                    "rollback_rule='spd' compares whole parameter tensors, and here are shards of them: take "
                    'DistributedDataParallel or ZeroRedundancyOptimizer, or another rule'
                )
            deviation = _deviation(p, anchor)
            slope = (p.grad * deviation).sum()
            before.append((level, p, anchor, slope < 0 if group.get('maximize') else slope > 0, deviation.norm()))
    yield
    pulls = []
    for level, p, anchor, turns_back, radius in before:
        reached = _deviation(p, anchor).norm()
        ratio = torch.where(turns_back & (reached > radius), (reached - radius) / reached, 0)
        pulls.append((level * ratio, [p], [anchor]))
    optimizer._pull(pulls)


RULES = dict(l2sp=_l2sp, l2sp_decoupled=_l2sp_decoupled, spd=_spd)
