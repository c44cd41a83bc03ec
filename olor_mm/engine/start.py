"""What happens once, when training starts, under every loop."""

from contextlib import AbstractContextManager
from typing import Any

from mmengine.logging import MessageHub, print_log
from mmengine.optim import OptimWrapper
from torch import nn

from ..optim import Rollback
from ..optim.state import eager
from .selection import PretrainedSelection


class Start:
    """Refuses a start where rollback would go wrong silently, settles lr_0, and keeps the norm statistics. Done once.

    The message hub of the run has the iteration where nothing else says it.
    """

    def __init__(self, optimizer: Rollback, selection: PretrainedSelection, hub: MessageHub):
        self.optimizer, self.selection, self.hub = optimizer, selection, hub
        self.is_done = False
        self.first_iteration: int | None = None
        self._iteration_when_built = hub.get_info('iter')  # of an earlier runner, if there was one

    @eager
    def __call__(self) -> None:
        """Do it, unless it is done."""
        if self.is_done:
            return
        self.is_done = True
        optimizer, selection = self.optimizer, self.selection
        groups = [group for group in optimizer.param_groups if not group['rollback_decided']]
        if not groups:
            inner: Any = getattr(optimizer, 'optim', optimizer)
            count = sum(state.get('anchor') is not None for state in inner.state.values())
            selection.record.close()
            print_log(f'OLOR: goes on with the {count} anchors of the resumed run', logger='current')
            return
        for group in groups:  # auto_scale_lr may have changed it since
            group['rollback_initial_lr'] = float(group.get('initial_lr', group['lr']))
        iteration = self._iteration()
        if iteration and optimizer.undecided():
            raise ValueError(
                f'training was resumed at iteration {iteration} from a checkpoint without the state of the optimizer, '
                'which has the pre-trained values. Resume from a checkpoint that was saved with it (CheckpointHook '
                'save_optimizer=True), or start anew with load_from'
            )
        selection.require_some()
        if not selection.is_on and not optimizer.undecided():  # as configured: not worth the warning of the first step
            for group in groups:
                group['rollback_decided'] = True
        optimizer.pretrained_statistics = selection.copy_statistics()

    def _iteration(self) -> int:
        if self.first_iteration is not None:
            return self.first_iteration
        now = self.hub.get_info('iter')
        return 0 if now is None or now == self._iteration_when_built else now


class StartOfTraining(OptimWrapper):
    """Mixin over the class of an optim wrapper: calls ``start`` before the first forward pass, or the first step.

    ``optim_context`` comes before the forward pass, but a model's own ``train_step`` may leave it out, as may an
    ``OptimWrapperDict``, which does not pass on ``initialize_count_status`` either; ``step`` comes in every loop.
    """

    start: Start

    def initialize_count_status(self, model: nn.Module, init_counts: int, max_counts: int) -> None:
        self.start.first_iteration = init_counts
        super().initialize_count_status(model, init_counts, max_counts)

    def optim_context(self, model: nn.Module) -> AbstractContextManager:
        self.start()
        return super().optim_context(model)

    def step(self, **kwargs) -> None:
        self.start()
        super().step(**kwargs)
