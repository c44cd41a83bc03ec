"""Where the distributions of OpenMMLab differ, and what MMEngine takes for granted that is not so everywhere."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine._strategy import FSDPStrategy
from mmengine.config import Config
from mmengine.device import get_device
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

from .optim.state import SEAL, check_seal, sealed


def use_cpu_processes(cfg: Config) -> None:
    """Let ``launcher='pytorch'`` and ``'slurm'`` work on machines without an accelerator, over gloo.

    MMEngine takes for granted that each process has a GPU: it selects one before it opens the process group, and
    hands its number to DistributedDataParallel. Nothing is changed where there is an accelerator.

    Args:
        cfg (Config): Config of a run; its ``model_wrapper_cfg`` is changed in place.
    """
    if cfg.launcher not in ('pytorch', 'slurm') or get_device() != 'cpu':
        return
    if not torch.distributed.is_initialized():
        if cfg.launcher == 'slurm':
            _set_slurm_environment((cfg.get('env_cfg') or {}).get('dist_cfg') or {})
        torch.distributed.init_process_group('gloo')
    wrapper = cfg.get('model_wrapper_cfg') or dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    cfg.model_wrapper_cfg = dict(wrapper, device_ids=None)


def _set_slurm_environment(dist_cfg: dict) -> None:
    for name, slurm in dict(RANK='PROCID', WORLD_SIZE='NTASKS', LOCAL_RANK='LOCALID').items():
        os.environ[name] = os.environ[f'SLURM_{slurm}']
    if 'MASTER_ADDR' not in os.environ:
        hosts = ['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']]
        os.environ['MASTER_ADDR'] = subprocess.run(hosts, check=True, capture_output=True, text=True).stdout.split()[0]
    os.environ.setdefault('MASTER_PORT', str(dist_cfg.get('port', 29500)))


def use_cpu_batchnorm(cfg: Config) -> None:
    """Take BatchNorm for SyncBatchNorm, which torch has for accelerators alone, on a machine without one.

    Weights and their names are the same. ``SyncBuffersHook`` of MMEngine averages statistics over processes.

    Args:
        cfg (Config): Config of a run; its ``model`` is changed in place.
    """

    def change(node) -> None:
        if isinstance(node, dict):
            if node.get('type') == 'SyncBN':
                node['type'] = 'BN'
            node = [*node.values()]
        if isinstance(node, (list, tuple)):
            for part in node:
                change(part)

    if get_device() == 'cpu':
        change(cfg.get('model'))


def unwrapped(model: nn.Module) -> nn.Module:
    """The model within DistributedDataParallel, FullyShardedDataParallel or torch.compile."""
    while True:
        inner = getattr(model, '_orig_mod', None) or getattr(model, 'module', None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


@contextmanager
def whole_parameters(model: nn.Module) -> Iterator[bool]:
    """Show the parameters of a model that FSDP has sharded in their own shapes, which groups and layers go by.

    Yields:
        bool: Whether the model is sharded by FSDP.

    Raises:
        ValueError: If FSDP has merged the parameters into flat ones.
    """
    wrappers = [module for module in model.modules() if isinstance(module, FSDP)]
    if not wrappers:
        yield False
        return
    if not all(wrapper._use_orig_params for wrapper in wrappers):
        raise ValueError(
            'strategy.model_wrapper.use_orig_params=False: FSDP merges parameters of different layers into one, and '
            'every layer has a level of its own; set model_wrapper=dict(use_orig_params=True)'
        )
    with FSDP.summon_full_params(model, writeback=False):
        yield True


def mend_fsdp_strategy() -> None:
    """Make ``FSDPStrategy`` resume the state of an optimizer, and keep what an OLOR one remembers beside it.

    MMEngine hands arguments to torch in an order that torch has changed since, so that no optimizer can be resumed.
    """

    def optim_state_dict(self: FSDPStrategy) -> dict:
        upstream = getattr(self.optim_wrapper.optimizer, 'upstream', None)
        state_dict = FSDP.optim_state_dict(self.model, self.optim_wrapper.optimizer)
        for state in state_dict['state'].values():
            places = [t.data_ptr() for t in state.values() if type(t) is torch.Tensor and t.numel() > 1]
            if len(places) > len(set(places)):
                raise RuntimeError(
                    "strategy.state_dict_cfg='full': on CPU, torch gathers all of an optimizer's states into one "
                    "buffer, which would save wrong ones; take state_dict_cfg='local'"
                )
        return sealed({**state_dict, 'upstream': upstream} if upstream else state_dict)

    def load_optim_state_dict(self: FSDPStrategy, state_dict: dict) -> None:
        check_seal(state_dict)  # over shards: below they are laid out anew
        state_dict.pop(SEAL, None)
        optimizer = self.optim_wrapper.optimizer
        upstream = state_dict.pop('upstream', None)
        local = FSDP.optim_state_dict_to_load(model=self.model, optim=optimizer, optim_state_dict=state_dict)
        self.optim_wrapper.load_state_dict({**local, 'upstream': upstream} if upstream else local)

    FSDPStrategy.optim_state_dict = optim_state_dict
    FSDPStrategy.load_optim_state_dict = load_optim_state_dict
