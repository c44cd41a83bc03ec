"""Trains a small classifier as one process of several: worker MODE WORK_DIR CHECKPOINT ..., see several.py.

What it ends with is written to WORK_DIR/rank_R.pth: weights, anchors by name, and the bytes of state of this process.
"""

import argparse
import math
import os
import time
from collections import Counter
from contextlib import suppress

import torch
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, FUNCTIONS
from mmengine.runner import FlexibleRunner, Runner
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from mmpretrain.structures import DataSample
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.utils.data import Dataset

from olor_mm.cli.machine import use_cpu_processes
from olor_mm.durable.loading import guard_loading
from olor_mm.layers import clean_name

GLOBAL_BATCH = 8


@DATASETS.register_module()
class RandomImages(Dataset):
    def __len__(self) -> int:
        return 3 * GLOBAL_BATCH

    def __getitem__(self, i: int) -> dict:
        generator = torch.Generator().manual_seed(i)
        image = torch.randint(0, 256, (3, 16, 16), generator=generator, dtype=torch.uint8)
        return dict(inputs=image, data_samples=DataSample().set_gt_label(i % 4))


@FUNCTIONS.register_module()
def each_block(module, recurse, nonwrapped_numel) -> bool:
    return ModuleWrapPolicy({TransformerEncoderLayer})(module, recurse, nonwrapped_numel)


def config(mode: str, work_dir: str, checkpoint: str, epochs: int, resume: bool, level: float = 0.1) -> Config:
    """A two-block vision transformer: nothing in it depends on how a batch is split."""
    optimizer = dict(type='AdamWOLOR', lr=1e-3, weight_decay=0.05)
    if mode == 'zero':
        optimizer.update(type='ZeroRedundancyOptimizer', optimizer_type='AdamW')
    backbone = dict(
        type='VisionTransformer',
        arch=dict(embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=32),
        img_size=16,
        patch_size=4,
        qkv_bias=False,  # the gradient of a key's bias is zero but for rounding, which Adam makes a full step of
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.'),
    )
    return Config(
        dict(
            default_scope='mmpretrain',
            model=dict(
                type='ImageClassifier',
                backbone=backbone,
                head=dict(type='LinearClsHead', num_classes=4, in_channels=16, loss=dict(type='CrossEntropyLoss')),
            ),
            train_dataloader=dict(
                batch_size=GLOBAL_BATCH // int(os.environ.get('WORLD_SIZE', 1)),
                num_workers=0,
                dataset=dict(type='RandomImages'),
                sampler=dict(type='DefaultSampler', shuffle=False),
            ),
            train_cfg=dict(by_epoch=True, max_epochs=epochs),
            optim_wrapper=dict(
                constructor='OLOROptimWrapperConstructor',
                optimizer=optimizer,
                paramwise_cfg=dict(rollback=dict(max_level=level, pretrained=['backbone']), norm_decay_mult=0.0),
            ),
            param_scheduler=dict(type='CosineAnnealingLR', T_max=4, by_epoch=True),
            default_hooks=dict(checkpoint=dict(type='SafeCheckpointHook', interval=1)),
            custom_hooks=[dict(type='ConsolidateOptimizerHook')],
            env_cfg=dict(),
            randomness=dict(seed=0),
            work_dir=work_dir,
            resume=resume,
            log_level='ERROR',
            experiment_name=work_dir.replace('/', '_'),
        )
    )


class StopBefore(Hook):
    def __init__(self, epoch: int):
        self.epoch = epoch

    def before_train_epoch(self, runner) -> None:
        if runner.epoch == self.epoch:
            raise KeyboardInterrupt


class Slow(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        time.sleep(0.5 if get_rank() == 1 else 0)


class Count(Hook):
    """Calls of each kind of communication in the iterations of an epoch, and the numbers that go into them."""

    def before_train_epoch(self, runner) -> None:
        self.profiler = torch.profiler.profile(record_shapes=True)
        self.profiler.start()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if batch_idx + 1 == len(runner.train_loop.dataloader):
            time.sleep(1)  # gloo's threads note an event after those who wait for it have gone on
            self.profiler.stop()
            events = [event for event in self.profiler.events() if event.name.startswith('gloo:')]
            self.calls = Counter(event.name for event in events)
            self.numbers = Counter()
            for event in events:
                self.numbers[event.name] += sum(map(math.prod, event.input_shapes))


def build(mode: str, cfg: Config) -> Runner | FlexibleRunner:
    if mode != 'single':
        cfg.launcher = 'pytorch'
        use_cpu_processes(cfg)
    if not mode.startswith('fsdp'):
        return Runner.from_cfg(cfg)
    cfg.pop('model_wrapper_cfg')
    wrapper = dict(type='MMFullyShardedDataParallel', use_orig_params=True, device_id=torch.device('cpu'))
    if mode == 'fsdp-blocks':
        wrapper['auto_wrap_policy'] = 'each_block'
    # torch 2.10 cannot gather a whole state on CPU: it hands out one buffer for all entries of a state
    cfg.strategy = dict(type='FSDPStrategy', model_wrapper=wrapper, state_dict_cfg='local')
    return FlexibleRunner.from_cfg(cfg)


def result(runner: Runner | FlexibleRunner) -> dict:
    """Whole weights and anchors of this process, and what it holds."""
    model, optimizer = runner.model, runner.optim_wrapper.optimizer
    state = getattr(optimizer, 'optim', optimizer).state
    held = {id(t): t for entry in state.values() for t in entry.values() if torch.is_tensor(t)}
    names = {p: clean_name(name).removeprefix('module.') for name, p in model.named_parameters()}
    anchors = {names[p]: entry['anchor'] for p, entry in state.items() if entry.get('anchor') is not None}
    if isinstance(model, FSDP):
        with FSDP.summon_full_params(model):
            weights = {clean_name(name): p.detach().clone() for name, p in model.named_parameters()}
    else:
        weights = {name.removeprefix('module.'): p.detach().clone() for name, p in model.named_parameters()}
    groups = [
        {key: group[key] for key in ('lr', 'rollback', 'weight_decay', 'names')} for group in optimizer.param_groups
    ]
    return dict(weights=weights, anchors=anchors, groups=groups, bytes=sum(t.nbytes for t in held.values()))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('mode')
    parser.add_argument('work_dir')
    parser.add_argument('checkpoint')
    parser.add_argument('--epochs', type=int, default=2)
    parser.add_argument('--stop', type=int, help='end before this epoch, as if killed')
    parser.add_argument('--resume', action='store_true')
    parser.add_argument('--level', type=float, default=0.1)
    parser.add_argument('--no-hook', action='store_true', help='leave ConsolidateOptimizerHook out')
    parser.add_argument('--slow', action='store_true', help='one process waits in every iteration')
    parser.add_argument('--count', action='store_true', help='count communication instead')
    args = parser.parse_args(arguments)
    guard_loading()  # as tools/train.py does
    cfg = config(args.mode, args.work_dir, args.checkpoint, args.epochs, args.resume, args.level)
    if args.no_hook:
        cfg.custom_hooks = []
    runner = build(args.mode, cfg)
    count = Count()
    for is_wanted, hook in ((args.stop is not None, StopBefore(args.stop)), (args.slow, Slow()), (args.count, count)):
        if is_wanted:
            runner.register_hook(hook)
    with suppress(KeyboardInterrupt):
        runner.train()
        ended = dict(calls=count.calls, numbers=count.numbers) if args.count else result(runner)
        torch.save(ended, os.path.join(args.work_dir, f'rank_{get_rank()}.pth'))
