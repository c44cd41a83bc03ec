"""Small runs for tests of hooks, and what they log."""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import torch
from conftest import CLASSIFICATION, ROOT
from digits import config as small_config
from mmengine.config import Config
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

SHARDED = {
    'FSDP': lambda: FullyShardedDataParallel(model(), use_orig_params=True, device_id=torch.device('cpu')),
}
with suppress(ImportError):  # torch before 2.6
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    SHARDED['FSDP2'] = lambda: fully_shard(model(), mesh=init_device_mesh('cpu', (1,)))
STOCK = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))


def config(work_dir, data, *hooks, optim_wrapper=None, iterations=3, **changes) -> Config:
    """The config of test_runner with hooks, and with another optimizer if one is given."""
    cfg = small_config(work_dir, data, iterations=iterations, **changes)
    if optim_wrapper is not None:
        cfg.optim_wrapper = copy.deepcopy(optim_wrapper)
    cfg.custom_hooks = [*cfg.custom_hooks, *hooks]
    return cfg


@cache
def stock_config() -> Config:
    return Config.fromfile(ROOT / CLASSIFICATION)


def with_validation(cfg: Config) -> Config:
    """The config with a validation on 12 digits after every epoch."""
    for key in ('val_dataloader', 'val_cfg', 'val_evaluator'):
        cfg[key] = copy.deepcopy(stock_config()[key])
    cfg.val_dataloader.update(batch_size=6, num_workers=0, persistent_workers=False)
    digits = dict(data_root=str(ROOT / 'data/digits/test'), indices=[80 * i for i in range(12)], serialize_data=False)
    cfg.val_dataloader.dataset.update(digits)
    cfg.train_cfg.val_interval = 1
    return cfg


def scalars(work_dir, prefix: str) -> list[dict]:
    """What a run logged, line by line, where a metric of this prefix is in it."""
    files = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [row for row in rows if any(key.startswith(prefix) for key in row)]


@contextmanager
def process_group(folder) -> Iterator[None]:
    """A group of this process alone."""
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
