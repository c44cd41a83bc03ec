"""Small trainings on images of digits, from the weights of ImageNet: what most tests with a Runner run."""

import torch
from conftest import CLASSIFICATION, ROOT, load, optimizer_names
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

import olor_mm  # noqa: F401

LR, LEVEL = 1e-3, 0.02


def config(work_dir, data, epochs=1, iterations=3, **changes) -> Config:
    """The classification config on a few images, one epoch of three iterations."""
    cfg = Config.fromfile(ROOT / CLASSIFICATION)
    cfg.work_dir = str(work_dir)
    images = [7 * i for i in range(8 * iterations)]
    # without serialize_data=False every dataset collects garbage
    digits = dict(data_root=str(data / 'digits/train'), indices=images, serialize_data=False)
    cfg.train_dataloader.dataset.update(digits)
    cfg.train_dataloader.update(batch_size=8, num_workers=0, collate_fn=dict(type='default_collate'), drop_last=True)
    cfg.model.backbone.init_cfg.checkpoint = str(data / 'weights/mobilenet_v2_mmpretrain.pth')
    cfg.optim_wrapper.paramwise_cfg.rollback.max_level = LEVEL
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    cfg.train_cfg.max_epochs = cfg.param_scheduler.T_max = epochs
    cfg.log_level = 'ERROR'
    cfg.experiment_name = str(work_dir).replace('/', '_')
    cfg.merge_from_dict(changes)
    return cfg


def train(cfg: Config) -> tuple[Runner, dict]:
    """Train, and read the last checkpoint back from its file."""
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner, load(ROOT / open(f'{cfg.work_dir}/last_checkpoint').read().strip())


def names_of(runner: Runner) -> list[str]:
    return optimizer_names(getattr(runner.model, 'module', runner.model), runner.optim_wrapper.optimizer)


def pretrained_state(data) -> dict:
    return load(data / 'weights/mobilenet_v2_mmpretrain.pth')['state_dict']


def parameter_names(runner, prefix=''):
    return {name for name, _ in runner.model.named_parameters() if name.startswith(prefix)}


def assert_anchors_are_the_checkpoints(found, source, expected):
    assert set(found) == expected
    for name, anchor in found.items():
        assert anchor.dtype == source[name].dtype and torch.equal(anchor, source[name]), name


class StopAfter(Hook):
    """Stops the process' training as a user does, in the middle of an epoch."""

    def __init__(self, epochs):
        self.epochs = epochs

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.epoch == self.epochs and batch_idx == 1:
            raise KeyboardInterrupt
