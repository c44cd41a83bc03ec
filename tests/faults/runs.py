"""Small real trainings in this process, each with a logger of its own, and what their checkpoints have in common."""

import copy
import os
import signal
from functools import cache
from pathlib import Path
from uuid import uuid4

import torch
from digits import config
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from olor_mm.durable.loading import load

SAFE = dict(type='SafeCheckpointHook', interval=1)


@cache
def base(data: Path) -> Config:
    """A narrow MobileNetV2 on 16 images, two iterations an epoch."""
    cfg = config('', data, iterations=2)
    object.__setattr__(cfg, '_format_python_code', False)  # half of the time of a run
    cfg.train_dataloader.dataset.serialize_data = False
    cfg.model.backbone.widen_factor = 0.1
    cfg.model.backbone.init_cfg = None
    cfg.model.head.in_channels = 1280
    cfg.optim_wrapper.paramwise_cfg.rollback.pretrained = ['backbone']
    cfg.param_scheduler.T_max = 4
    return cfg


def configured(work_dir: Path, data: Path, epochs: int = 2, hook: dict = SAFE, **changes) -> Config:
    cfg = copy.deepcopy(base(data))
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = uuid4().hex  # MMEngine gives runs of one name and second the same logger
    cfg.train_cfg.max_epochs = epochs
    cfg.default_hooks.checkpoint = dict(hook)
    cfg.merge_from_dict(changes)
    return cfg


def trained(work_dir: Path, data: Path, *hooks: Hook, **options) -> Runner:
    runner = Runner.from_cfg(configured(work_dir, data, **options))
    for hook in hooks:
        runner.register_hook(hook)
    runner.train()
    return runner


def resumed(work_dir: Path, data: Path, *hooks: Hook, epochs: int = 3, **options) -> Runner:
    return trained(work_dir, data, *hooks, epochs=epochs, resume=True, **options)


def logged(work_dir: Path) -> str:
    """What the runs in a work directory wrote into their log files."""
    return ''.join(file.read_text() for file in work_dir.glob('*/*.log'))


class Terminate(Hook):
    """SIGTERM to this process before an iteration."""

    def __init__(self, at: int):
        self.at = at

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


class Iterations(Hook):
    """Notes the epoch and the place in it of every iteration."""

    def __init__(self):
        self.seen = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.seen.append((runner.epoch, batch_idx))


def equal(file: Path, other: Path, but: str = 'nothing') -> bool:
    """Whether weights (except those with ``but`` in their name), states of the optimizer and anchors are the same."""
    a, b = load(file), load(other)
    states = a['optimizer']['state'], b['optimizer']['state']
    return (
        all(torch.equal(value, b['state_dict'][name]) for name, value in a['state_dict'].items() if but not in name)
        and states[0].keys() == states[1].keys()
        and all(torch.equal(v, states[1][i][key]) for i, state in states[0].items() for key, v in state.items())
    )
