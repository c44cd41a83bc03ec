"""The state of a sharded optimizer, gathered before it is saved."""

from typing import Any

from mmengine.hooks import Hook

from ...mixing import mix_in


class GathersOptimizerState:
    """Mixin for a runner: gathers what its optimizer spreads over processes before it saves a checkpoint."""

    optim_wrapper: Any

    def save_checkpoint(self, *args, **kwargs) -> None:
        optimizer = self.optim_wrapper.optimizer
        if kwargs.get('save_optimizer', True) and hasattr(optimizer, 'consolidate_state_dict'):
            optimizer.consolidate_state_dict()
        super().save_checkpoint(*args, **kwargs)  # type: ignore[misc]


class ConsolidateOptimizerHook(Hook):
    """Gathers the state that ``ZeroRedundancyOptimizer`` spreads over processes before a checkpoint is saved.

    All processes have to take part, and MMEngine saves on the first alone.

    Example:
        >>> custom_hooks = [dict(type='ConsolidateOptimizerHook')]
    """

    def before_run(self, runner) -> None:
        mix_in(runner, GathersOptimizerState)
