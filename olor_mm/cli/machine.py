"""Stock configs on machines without an accelerator, which MMEngine does not expect."""

import os
import subprocess

import torch
from mmengine.config import Config
from mmengine.device import get_device


def use_cpu_processes(cfg: Config) -> None:
    """Open a process group over gloo where there is no accelerator: MMEngine selects a GPU before it opens one."""
    if cfg.launcher not in ('pytorch', 'slurm') or get_device() != 'cpu':
        return
    if not torch.distributed.is_initialized():
        if cfg.launcher == 'slurm':
            _set_slurm_environment((cfg.get('env_cfg') or {}).get('dist_cfg') or {})
        torch.distributed.init_process_group('gloo')
    unused = cfg.get('find_unused_parameters', False)
    stock = dict(type='MMDistributedDataParallel', broadcast_buffers=False, find_unused_parameters=unused)
    cfg.model_wrapper_cfg = dict(cfg.get('model_wrapper_cfg') or stock, device_ids=None)


def _set_slurm_environment(dist_cfg: dict) -> None:
    for name, slurm in dict(RANK='PROCID', WORLD_SIZE='NTASKS', LOCAL_RANK='LOCALID').items():
        os.environ[name] = os.environ[f'SLURM_{slurm}']
    if 'MASTER_ADDR' not in os.environ:
        hosts = ['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']]
        os.environ['MASTER_ADDR'] = subprocess.run(hosts, check=True, capture_output=True, text=True).stdout.split()[0]
    os.environ.setdefault('MASTER_PORT', str(dist_cfg.get('port', 29500)))


def use_cpu_batchnorm(cfg: Config) -> None:
    """Replace SyncBatchNorm, which torch has only for accelerators, by BatchNorm; names of weights are the same."""

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
