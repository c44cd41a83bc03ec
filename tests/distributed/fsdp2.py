"""A plain PyTorch loop, sharded by fully_shard (FSDP2) if there are several processes: fsdp2 WORK_DIR [--steps N] ...

What it ends with is written to WORK_DIR/rank_R.pth: whole weights and anchors by name.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

from olor_mm.optim import AdamWOLOR

BATCH = 8


def whole(t: torch.Tensor) -> torch.Tensor:
    return (t.full_tensor() if hasattr(t, 'full_tensor') else t).detach().clone()


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('work_dir', type=Path)
    parser.add_argument('--steps', type=int, default=6)
    parser.add_argument('--save-at', type=int)
    parser.add_argument('--resume', action='store_true')
    args = parser.parse_args(arguments)
    rank, world = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.GELU()) for _ in range(3)), nn.Linear(16, 4))
    if world > 1:
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group('gloo')
        for block in model[:3]:
            fully_shard(block)
        fully_shard(model)
    groups = [dict(params=list(block.parameters()), rollback=0.1 - 0.03 * i) for i, block in enumerate(model)]
    groups[-1]['rollback'] = 0.0
    optimizer = AdamWOLOR(groups, lr=1e-3, weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8)
    first = 0
    if args.resume:
        states = get_state_dict(model, optimizer)
        states = dict(model=states[0], optimizer=states[1], scheduler=scheduler.state_dict(), step=0)
        dcp.load(states, checkpoint_id=args.work_dir / 'checkpoint')
        set_state_dict(model, optimizer, model_state_dict=states['model'], optim_state_dict=states['optimizer'])
        scheduler.load_state_dict(states['scheduler'])
        first = states['step']
    for step in range(first, args.steps):
        if step == args.save_at:
            states = get_state_dict(model, optimizer)
            states = dict(model=states[0], optimizer=states[1], scheduler=scheduler.state_dict(), step=step)
            dcp.save(states, checkpoint_id=args.work_dir / 'checkpoint')
            return
        generator = torch.Generator().manual_seed(step)
        inputs, labels = torch.randn(BATCH, 16, generator=generator), torch.arange(BATCH) % 4
        mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[mine]), labels[mine]).backward()
        optimizer.step()
        scheduler.step()
    names = {p: name for name, p in model.named_parameters()}
    anchors = {names[p]: whole(state['anchor']) for p, state in optimizer.state.items() if 'anchor' in state}
    args.work_dir.mkdir(parents=True, exist_ok=True)
    weights = {name: whole(p) for name, p in model.named_parameters()}
    torch.save(dict(weights=weights, anchors=anchors), args.work_dir / f'rank_{rank}.pth')
