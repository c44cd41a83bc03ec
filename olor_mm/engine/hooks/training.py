"""Which parameters a run really trains."""

from collections.abc import Callable

from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn


class TrainedParameters:
    """Parameters that had a gradient and a rate above 0 in some step: no frozen copy does, however it is frozen.

    Args:
        optim_wrapper (OptimWrapper): Of a run, before its first step.
        before_first (Callable, optional): Takes the parameters that are about to be trained for the first time.
    """

    def __init__(
        self, optim_wrapper: OptimWrapper, before_first: Callable[[set[nn.Parameter]], None] = lambda new: None
    ):
        self.found: set[nn.Parameter] = set()
        self.before_first = before_first
        several = isinstance(optim_wrapper, OptimWrapperDict)
        for wrapper in optim_wrapper.values() if several else [optim_wrapper]:
            wrapper.optimizer.register_step_pre_hook(self._before_step)

    def _before_step(self, optimizer, *_) -> None:
        groups = [group for group in optimizer.param_groups if group['lr'] != 0]
        new = {p for group in groups for p in group['params'] if p.grad is not None} - self.found
        if new:
            self.found |= new
            self.before_first(new)
