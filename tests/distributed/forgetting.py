"""Trains as worker.py does, with the hooks that measure forgetting: forgetting MODE WORK_DIR CHECKPOINT IMAGES."""

import os

import torch
import worker
from mmengine.dist import get_rank

from olor_mm.durable.loading import guard_loading

STEPS = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(16, 16)), dict(type='PackInputs')]


def main(arguments: list[str]) -> None:
    mode, work_dir, checkpoint, images = arguments
    guard_loading()
    cfg = worker.config(mode, work_dir, checkpoint, 2, False)
    pretrained = dict(
        type='PretrainedEvalHook',
        model=cfg.model.to_dict(),
        checkpoint=checkpoint,
        images=images,
        pipeline=STEPS,
        dataloader=cfg.train_dataloader.to_dict(),
        evaluator=dict(type='Accuracy', topk=(1,)),
    )
    cfg.custom_hooks += [dict(type='DriftHook', interval=2)] + ([pretrained] if mode != 'fsdp' else [])
    cfg.val_dataloader, cfg.val_evaluator = cfg.train_dataloader, dict(type='Accuracy', topk=(1,))
    cfg.val_cfg = dict()
    runner = worker.build(mode, cfg)
    runner.train()
    found = {name: buffer.current() for name, buffer in runner.message_hub.log_scalars.items() if 'pretrained' in name}
    torch.save(found, os.path.join(work_dir, f'rank_{get_rank()}.pth'))
