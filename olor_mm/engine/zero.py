"""MMEngine's ZeRO over optimizers with rollback."""

import torch
from mmengine.optim import ZeroRedundancyOptimizer

from ..optim import Rollback
from ..optim.state import loading_anchors, with_statistics
from .optimizers import rollback_class


class ZeroRedundancyOptimizerOLOR(ZeroRedundancyOptimizer):
    """MMEngine's ZeRO over an OLOR optimizer: every process keeps states and anchors of its share of the parameters.

    For several processes. To save checkpoints, set :class:`olor_mm.engine.hooks.ConsolidateOptimizerHook` too.

    Args:
        params: Parameters or parameter groups, the same on every process.
        optimizer_type (str): Name of the optimizer in MMEngine's registry, e.g. ``'AdamW'`` or ``'AdamWOLOR'``.
        **options: Arguments of that optimizer and of :class:`olor_mm.optim.Rollback`.

    Raises:
        ValueError: If there is no such optimizer or rollback has no meaning for it.
    """

    def __init__(self, params, optimizer_type: str, **options):
        cls = rollback_class(optimizer_type, 'optimizer.optimizer_type')
        # MMEngine's own looks the type up in torch.optim alone
        super(ZeroRedundancyOptimizer, self).__init__(list(params), cls, **options)
        self.pretrained_statistics: dict[str, torch.Tensor] = {}
        self._is_gathered = False

    @property
    def select_pretrained(self):
        """See :class:`olor_mm.optim.Rollback`; asked on every process for its own parameters."""
        return self.optim.select_pretrained

    @select_pretrained.setter
    def select_pretrained(self, select) -> None:
        self.optim.select_pretrained = select

    undecided = Rollback.undecided  # here of all processes together

    def rollback_weight(self, group: dict) -> float | torch.Tensor:
        """See :meth:`olor_mm.optim.Rollback.rollback_weight`."""
        return self.optim.rollback_weight(group)

    def step(self, closure=None, **kwargs):
        self._is_gathered = False
        return super().step(closure, **kwargs)

    def consolidate_state_dict(self, to: int = 0) -> None:
        """Gather the state of all processes on one; call it on all of them."""
        super().consolidate_state_dict(to)
        self._is_gathered = True

    def state_dict(self) -> dict:
        """The state of all processes, on the process it was gathered on.

        Raises:
            RuntimeError: If it was not gathered since the last step. MMEngine saves checkpoints on the first process
                alone, where gathering would wait for the others for ever.
        """
        if not self._is_gathered:
            raise RuntimeError(
                'the state of ZeroRedundancyOptimizer is spread over the processes and was not gathered: set '
                "custom_hooks=[dict(type='ConsolidateOptimizerHook')], or default_hooks.checkpoint.save_optimizer=False"
            )
        return with_statistics(super(ZeroRedundancyOptimizer, self).state_dict(), self.pretrained_statistics)

    def load_state_dict(self, state_dict: dict) -> None:
        """Load the state of all processes; each takes its share. See :meth:`olor_mm.optim.Rollback.load_state_dict`."""
        with loading_anchors(self, self.optim, state_dict) as bare:
            super().load_state_dict(bare)
            self.state.clear()  # torch leaves a second copy here
