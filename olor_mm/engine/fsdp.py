"""What rollback needs to work with models that FSDP has sharded."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine._strategy import FSDPStrategy
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

from ..optim.state import STATISTICS, statistics_in, with_statistics


@contextmanager
def whole_parameters(model: nn.Module) -> Iterator[bool]:
    """Show the parameters of a model that FSDP has sharded in their own shapes; yields whether it has."""
    wrappers = [module for module in model.modules() if isinstance(module, FSDP)]
    if not wrappers:
        yield False
        return
    if not all(wrapper._use_orig_params for wrapper in wrappers):
        raise ValueError(
            'strategy.model_wrapper.use_orig_params=False merges parameters of layers that have levels of their own; '
            'set model_wrapper=dict(use_orig_params=True)'
        )
    with FSDP.summon_full_params(model, writeback=False):
        yield True


def mend_fsdp_strategy() -> None:
    """Make MMEngine's ``FSDPStrategy`` resume an optimizer, and keep what an OLOR optimizer remembers beside its state.

    MMEngine passes arguments to torch in an order that torch has changed since, so that no optimizer can be resumed.
    The class is mended, as strategies are built before any of this package is imported.
    """

    def optim_state_dict(self: FSDPStrategy) -> dict:
        optimizer = self.optim_wrapper.optimizer
        state_dict = FSDP.optim_state_dict(self.model, optimizer)
        for state in state_dict['state'].values():
            places = [t.data_ptr() for t in state.values() if type(t) is torch.Tensor and t.numel() > 1]
            if len(places) > len(set(places)):
                raise RuntimeError(
                    "strategy.state_dict_cfg='full': on CPU, torch gathers all of an optimizer's states into one "
                    "buffer, which would save wrong ones; take state_dict_cfg='local'"
                )
        return with_statistics(state_dict, getattr(optimizer, STATISTICS, {}))

    def load_optim_state_dict(self: FSDPStrategy, state_dict: dict) -> None:
        optimizer = self.optim_wrapper.optimizer
        of_torch = {key: state_dict[key] for key in ('state', 'param_groups')}
        local = FSDP.optim_state_dict_to_load(model=self.model, optim=optimizer, optim_state_dict=of_torch)
        self.optim_wrapper.load_state_dict(with_statistics(local, statistics_in(state_dict)))

    FSDPStrategy.optim_state_dict = optim_state_dict
    FSDPStrategy.load_optim_state_dict = load_optim_state_dict
