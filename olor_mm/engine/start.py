"""What happens once, when training starts, under every loop."""

from contextlib import AbstractContextManager
from typing import Any

from mmengine.logging import MessageHub, print_log
from mmengine.optim import OptimWrapper
from torch import nn

from ..optim import Rollback
from ..optim.state import FREE, OTHERWISE, eager
from .selection import PretrainedSelection


class Start:
    """Refuses a start where rollback would go wrong silently, settles levels and lr_0, and keeps the norm statistics.

    Done once. The message hub of the run has the iteration where nothing else says it. ``heads`` are the parameters
    after the backbone that have no level by hand.
    """

    def __init__(self, optimizer: Rollback, selection: PretrainedSelection, hub: MessageHub, heads: list[nn.Parameter]):
        self.optimizer, self.selection, self.hub, self.heads = optimizer, selection, hub, heads
        self.is_done = False
        self._first_iteration: int | None = None
        self._iteration_when_built = hub.get_info('iter')  # of an earlier runner, if there was one

    def note(self, iteration: int | None = None) -> None:
        """Note at which iteration training starts, and lr_0: after auto_scale_lr, before a hook warms rates up."""
        if iteration is None and self._first_iteration is not None:
            return
        self._first_iteration = self._iteration() if iteration is None else iteration
        groups = self._new_groups()
        added = [group['rollback_initial_lr'] for group in groups]
        rates = [max(float(group.get('initial_lr', group['lr'])), float(group['lr'])) for group in groups]
        scaled = max((rate / before for rate, before in zip(rates, added) if before), default=1.0)
        for group, rate, before in zip(groups, rates, added):
            group['rollback_initial_lr'] = rate or scaled * before  # 0 by lr_mult, under a schedule with a floor

    def _iteration(self) -> int:
        now = self.hub.get_info('iter')
        return 0 if now is None or now == self._iteration_when_built else now

    @eager
    def __call__(self) -> None:
        """Do it, unless it is done."""
        if self.is_done:
            return
        self.is_done = True
        if self._first_iteration is None:  # a loop that asks the wrapper for nothing
            self._first_iteration = self._iteration()
        optimizer, selection = self.optimizer, self.selection
        if not (groups := self._new_groups()):
            inner: Any = getattr(optimizer, 'optim', optimizer)
            anchors = [state['anchor'] for state in inner.state.values() if 'anchor' in state]
            later = sum(anchor is None for anchor in anchors)
            selection.record.close()
            print_log(
                f'OLOR: goes on with the {len(anchors) - later} anchors of the resumed run'
                + (f'; {later} parameters are frozen, and get theirs once they are trained' if later else ''),
                logger='current',
            )
            return
        self._settle_levels()
        if self._first_iteration and optimizer.undecided():
            raise ValueError(
                f'training was resumed at iteration {self._first_iteration} from a checkpoint without the state of the '
                'optimizer, which has the pre-trained values. Resume from a checkpoint that was saved with it '
                '(CheckpointHook save_optimizer=True), or start anew with load_from'
            )
        selection.require_some()
        if not selection.is_on and not optimizer.undecided():  # as configured: not worth the warning of the first step
            for group in groups:
                group['rollback_decided'] = FREE
        optimizer.pretrained_statistics = selection.copy_statistics()

    def _new_groups(self) -> list[dict]:
        inner: Any = getattr(self.optimizer, 'optim', None)  # of ZeRO
        groups = [*self.optimizer.param_groups, *(inner.param_groups if inner else ())]
        return [group for group in groups if not group['rollback_decided']]

    def _settle_levels(self) -> None:
        """Settle ``min_level=None``: neck and heads have a level if any of them is pre-trained."""
        found = self.selection.among([p for p in self.heads if p.requires_grad])
        groups = [group for group in self._new_groups() if OTHERWISE in group]
        for group in groups:
            otherwise = group.pop(OTHERWISE)
            group['rollback'] = group['rollback'] if found else otherwise
        if groups and found:
            level = self.selection.settings.level(1, 1, heads_are_pretrained=True)
            print_log(
                f'OLOR: {len(found)} of {len(self.heads)} parameter tensors after the backbone are pre-trained, so the '
                f'level falls to {level:.3g} there; rollback.min_level=0 leaves them free',
                logger='current',
            )
        self.selection.candidates = self.optimizer.undecided()


class StartOfTraining(OptimWrapper):
    """Mixin over the class of an optim wrapper: calls ``start`` before the first forward pass, or the first step.

    ``optim_context`` comes before the forward pass, but a model's own ``train_step`` may leave it out, as may an
    ``OptimWrapperDict``; ``step`` comes in every loop. The first iteration is known from ``initialize_count_status``,
    or, as an ``OptimWrapperDict`` does not pass that on, from ``get_lr``, which MMEngine logs before every iteration:
    the first step of a wrapper may come many iterations later.
    """

    start: Start

    def initialize_count_status(self, model: nn.Module, init_counts: int, max_counts: int) -> None:
        self.start.note(init_counts)
        super().initialize_count_status(model, init_counts, max_counts)

    def get_lr(self) -> dict[str, list[float]]:
        self.start.note()
        return super().get_lr()

    def optim_context(self, model: nn.Module) -> AbstractContextManager:
        self.start()
        return super().optim_context(model)

    def step(self, **kwargs) -> None:
        self.start()
        super().step(**kwargs)
