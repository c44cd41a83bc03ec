"""Stock configs on machines that MMEngine does not expect: without an accelerator."""

import os
import subprocess

import torch
from mmengine.config import Config
from mmengine.device import get_device


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
