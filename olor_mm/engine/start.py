"""What happens once, when training starts, under every loop."""

from contextlib import AbstractContextManager

from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from torch import nn

from ..optim import Rollback
from ..optim.state import eager
from .selection import PretrainedSelection


class Start:
    """Refuses a start where rollback would go wrong silently, settles lr_0, and keeps the norm statistics. Done once.

    Args:
        optimizer (Rollback): Or the ZeRO optimizer around one.
        selection (PretrainedSelection): What was pre-trained.
    """

    def __init__(self, optimizer: Rollback, selection: PretrainedSelection):
        self.optimizer, self.selection = optimizer, selection
        self.is_done = False

    @eager
    def __call__(self, first_iteration: int = 0) -> None:
        """Start at an iteration, which is above 0 in a resumed run.

        Raises:
            ValueError: If training was resumed without the optimizer's state, or nothing would be rolled back.
        """
        if self.is_done:
            return
        self.is_done = True
        optimizer, selection = self.optimizer, self.selection
        groups = [group for group in optimizer.param_groups if not group['rollback_decided']]
        if not groups:
            states = getattr(optimizer, 'optim', optimizer).state.values()
            count = sum(state.get('anchor') is not None for state in states)
            selection.record.close()
            print_log(f'OLOR: goes on with the {count} anchors of the resumed run', logger='current')
            return
        for group in groups:  # auto_scale_lr may have changed it since
            group['rollback_initial_lr'] = float(group.get('initial_lr', group['lr']))
        if first_iteration and optimizer.undecided():
            raise ValueError(
                f'training was resumed at iteration {first_iteration} from a checkpoint without the state of the '
                'optimizer, which has the pre-trained values. Resume from a checkpoint that was saved with it '
                '(CheckpointHook save_optimizer=True), or start anew with load_from'
            )
        selection.require_some()
        if not selection.is_on and not optimizer.undecided():  # as configured: not worth the warning of the first step
            for group in groups:
                group['rollback_decided'] = True
        optimizer.pretrained_statistics = selection.copy_statistics()


class StartOfTraining(OptimWrapper):
    """Mixin over the class of an optim wrapper: calls ``start`` before the first forward pass, or the first step.

    ``optim_context`` comes before the forward pass, but a model's own ``train_step`` may leave it out, as may an
    ``OptimWrapperDict``, which does not pass on ``initialize_count_status`` either; ``step`` comes in every loop.
    """

    start: Start
    first_iteration: int | None = None
    iteration_when_built: int | None = None

    def start_with(self, start: Start) -> None:
        """Set what is done at the start of training."""
        self.start = start
        self.iteration_when_built = self.message_hub.get_info('iter')

    def initialize_count_status(self, model: nn.Module, init_counts: int, max_counts: int) -> None:
        self.first_iteration = init_counts
        super().initialize_count_status(model, init_counts, max_counts)

    def optim_context(self, model: nn.Module) -> AbstractContextManager:
        self._begin()
        return super().optim_context(model)

    def step(self, **kwargs) -> None:
        self._begin()
        super().step(**kwargs)

    def _begin(self) -> None:
        if self.start.is_done:
            return
        first = self.first_iteration
        if first is None:  # in an OptimWrapperDict; the hub may still have the iteration of an earlier runner
            first = self.message_hub.get_info('iter') or 0
            first = 0 if first == self.iteration_when_built else first
        self.start(first)
