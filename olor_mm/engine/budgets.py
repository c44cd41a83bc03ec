"""How much of their drift budgets layers use, and the line that says so when training ends."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from mmengine.dist import all_reduce, get_rank
from mmengine.hooks import Hook
from mmengine.logging import MessageHub, print_log
from mmengine.optim import OptimWrapper, OptimWrapperDict, ZeroRedundancyOptimizer
from torch import Tensor
from torch.nn import Parameter

from ..optim.anchors import fetched
from ..optim.rules import RULES
from ..optim.state import eager

# Steps that are u budgets long in all, of which the share c leads away, end at c (1 - exp(-u)) of the budget, which is
# (1 - exp(-u)) / u of where they would end without. From 0.4 on that is at most 0.79, whatever c is; below 0.1 it is at
# least 0.87, if c is 0.4 or more, as in a short training. See docs/en/choosing_how_strong.md.
MUCH, LITTLE = 0.4, 0.1


def is_under_budget(group: Mapping) -> bool:
    """Whether a parameter group of any optimizer has a drift budget."""
    return bool(group.get('rollback')) and RULES[group.get('rollback_rule', 'olor')].is_drift


def radii(optimizer: Any) -> dict[Parameter, float]:
    """How far each parameter under a drift budget may move that has its anchor in this process: ||theta - theta_0||."""
    groups = [group for group in getattr(optimizer, 'param_groups', ()) if is_under_budget(group)]
    anchored = [
        (p, g) for g in groups for p in g['params'] if torch.is_tensor(optimizer.state.get(p, {}).get('anchor'))
    ]
    return {p: group['rollback'] * optimizer.norm_of(p) for p, group in anchored}


def differences(params: Sequence[Tensor], starts: Sequence[Tensor], are_partial: bool) -> list[Tensor]:
    """theta - theta_0 of each; if they are partial, 0 where theta_0 is NaN, which leaves an element free."""
    moved = torch._foreach_sub(params, starts)
    if are_partial:
        for away, start in zip(moved, starts):
            away.masked_fill_(start.isnan(), 0)
    return moved


def sums_of_squares(batches: Iterable[tuple[int, Sequence[Tensor]]], sums: Tensor) -> Tensor:
    """Add the squares of all elements of the tensors at number i to ``sums[i]``, shape (numbers,); returns ``sums``."""
    for i, tensors in batches:
        norms = torch._foreach_norm([t.float() for t in tensors])  # half precision would overflow
        sums[i] += torch.stack([norm.to(sums.device) for norm in norms]).square().sum()
    return sums


class BudgetUse:
    """Says once, after the last step of training, how much of their drift budgets layers used.

    Args:
        optimizer (Rollback or ZeroRedundancyOptimizerOLOR): Of the run.
        layers (Mapping[Parameter, int]): The layer i of its parameters.
    """

    def __init__(self, optimizer: Any, layers: Mapping[Parameter, int]):
        self.optimizer, self.layers = optimizer, layers
        self._has_stepped = self._is_told = False

    @eager
    def after_step(self, wrapper: OptimWrapper) -> None:
        """Tell, if it was the last: by the count of updates, of which an iteration may have several, and of the run."""
        self._has_stepped = True
        hub = MessageHub.get_current_instance()
        counts = [
            (wrapper._inner_count, wrapper._max_counts),
            (hub.get_info('iter', 0) + 1, hub.get_info('max_iters', 0)),
        ]
        known = [done >= total for done, total in counts if total > 0]
        if known and all(known):
            self.tell()

    def tell(self) -> None:
        """Measure and log, unless it is done or no step was made; under ZeRO and FSDP, call it in all processes."""
        if self._is_told or not self._has_stepped or not any(map(is_under_budget, self.optimizer.param_groups)):
            return
        self._is_told = True
        is_sharded = any(hasattr(p, 'to_local') or getattr(p, '_fsdp_flattened', False) for p in self.layers)
        is_spread = is_sharded or isinstance(self.optimizer, ZeroRedundancyOptimizer)
        if get_rank() and not is_spread:  # the first process has everything
            return
        sums = self._sums()
        if is_spread:
            all_reduce(sums)
        shares = {i: (moved / radius) ** 0.5 for i, (moved, radius) in enumerate(sums.T.tolist()) if radius}
        if shares:
            print_log(f'OLOR: {use(shares)}', logger='current')

    @torch.no_grad()
    def _sums(self) -> Tensor:
        """For each layer ||theta - theta_0||^2 and its bound, of what is trained, shape (2, layers)."""
        inner = getattr(self.optimizer, 'optim', self.optimizer)
        # a step as long as the budget leaves a tensor at theta_0, where one that is not trained is too
        moving = [group for group in inner.param_groups if group.get('initial_lr', group['lr'])]
        trained = {p for group in moving for p in group['params'] if p.grad is not None}
        sums = torch.zeros(2, max(self.layers.values()) + 1, device=next(iter(self.layers)).device)
        pairs = [
            ((self.layers[p], radius, p in trained), [p], [inner.state[p]['anchor']])
            for p, radius in radii(inner).items()
            if p in self.layers
        ]
        for (i, radius, is_trained), params, starts in fetched(pairs):
            moved = sums_of_squares([(0, differences(params, starts, True))], torch.zeros(1, device=sums.device))
            sums[:, i] += torch.cat([moved, radius**2 * ((moved > 0) | is_trained)])
        return sums


def use(shares: Mapping[int, float]) -> str:
    """In a line, the shares of their budgets that layers used.

    >>> use({0: 0.02, 1: 0.05, 2: 0.3, 3: 0.6, 5: 0.7})
    'layers used 2 to 70 % of their drift budgets; 40 % or more: layer 3, 5 (a larger budget would let them go \
further); less than 10 %: layer 0 to 1'
    """
    low, high = (f'{100 * share:.0f}' for share in (min(shares.values()), max(shares.values())))
    line = f'layers used {low if low == high else f"{low} to {high}"} % of their drift budgets'
    if much := spans(i for i, share in shares.items() if share >= MUCH):
        line += f'; {100 * MUCH:.0f} % or more: layer {much} (a larger budget would let them go further)'
    if little := spans(i for i, share in shares.items() if share < LITTLE):
        line += f'; less than {100 * LITTLE:.0f} %: layer {little}'
    return line


def spans(numbers: Iterable[int]) -> str:
    """Numbers in ascending order, as short as that can be said.

    >>> spans([0, 1, 2, 5, 7, 8])
    '0 to 2, 5, 7 to 8'
    """
    runs = [[i for _, i in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ', '.join(f'{run[0]} to {run[-1]}' if run[1:] else f'{run[0]}' for run in runs)


class EndOfTraining(OptimWrapper):
    """Mixin over the class of an optim wrapper: after the last step, says how much of their budgets layers used.

    It does not see an end that comes early, as by EarlyStoppingHook; :class:`TellBudgetUse` does.
    """

    budgets: BudgetUse

    def step(self, **kwargs) -> None:
        super().step(**kwargs)
        self.budgets.after_step(self)


class TellBudgetUse(Hook):
    """Has the line said however training ends without an error.

    ``python -m olor_mm train`` registers it. Elsewhere :class:`~olor_mm.engine.DriftHook`, which is one, does the same.
    """

    def after_train(self, runner) -> None:
        wrapper = runner.optim_wrapper
        for one in wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]:
            if isinstance(one, EndOfTraining):
                one.budgets.tell()
