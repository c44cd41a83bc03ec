"""Every rule with sharded parameters or states, beside the same in one process: rules WORK_DIR.

Weights by kind and rule, or the error that refuses them, are written to WORK_DIR/rank_R.pth. 'rows' are kinds in which
one row of the first layer is new.
"""

import copy
import os

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from olor_mm.engine import ZeroRedundancyOptimizerOLOR
from olor_mm.optim import AdamWOLOR
from olor_mm.pretrained import mark_new

OPTIONS = dict(
    olor=dict(rollback=0.3),
    l2sp=dict(rollback=0.5, rollback_new=0.2),
    l2sp_decoupled=dict(rollback=5.0, rollback_new=2.0),
    spd=dict(rollback=1.0),
    drift=dict(rollback=0.5),
)
KINDS = (
    'alone',
    'zero',
    'fsdp',
    'fsdp resumed',
    'rows',
    'ddp rows',
    'ddp rows resumed',
    'zero rows',
    'zero rows resumed',
)


def made() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))


def optimizer_of(model, kind: str, rule: str):
    options = dict(lr=1e-2, rollback_rule=rule, **OPTIONS[rule])
    if 'zero' in kind:
        optimizer = ZeroRedundancyOptimizerOLOR(model.parameters(), 'AdamW', **options)
    else:
        optimizer = AdamWOLOR(model.parameters(), **options)
    old = set(model[0].parameters())
    optimizer.select_pretrained = lambda params: [p for p in params if p in old]
    return optimizer


def resumed(optimizer, model, kind: str, rule: str):
    """Another optimizer that goes on from the state of all processes, or from that of each its own."""
    state_dict = {} if 'zero' in kind else copy.deepcopy(optimizer.state_dict())
    for rank in range(torch.distributed.get_world_size() if 'zero' in kind else 0):
        optimizer.consolidate_state_dict(to=rank)
        state_dict = optimizer.state_dict() if rank == torch.distributed.get_rank() else state_dict
    other = optimizer_of(model, kind, rule)
    other.load_state_dict(state_dict)
    return other


def train(kind: str, rule: str) -> list[torch.Tensor]:
    model = made()
    if 'rows' in kind:
        is_new = torch.zeros(6, 6, dtype=torch.bool)
        is_new[4] = True
        mark_new(model[0].weight, is_new)
    if 'fsdp' in kind:
        fully_shard(model)
    forward = DistributedDataParallel(model) if 'ddp' in kind else model
    optimizer = optimizer_of(model, kind, rule)
    for step in range(12):
        if 'resumed' in kind and step == 5:
            optimizer = resumed(optimizer, model, kind, rule)
        inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(step // 6))
        optimizer.zero_grad()
        ((-1) ** (step // 3) * forward(inputs).sin().sum()).backward()
        optimizer.step()
    return [p.full_tensor() if hasattr(p, 'full_tensor') else p.detach() for p in model.parameters()]


def main(arguments: list[str]) -> None:
    [work_dir] = arguments
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    ended: dict = dict(start=[p.detach() for p in made()[0].parameters()])  # of those that are pulled
    for rule in OPTIONS:
        for kind in KINDS:
            try:
                ended[kind, rule] = train(kind, rule)
            except ValueError as error:
                ended[kind, rule] = str(error)
    os.makedirs(work_dir, exist_ok=True)
    torch.save(ended, os.path.join(work_dir, f'rank_{torch.distributed.get_rank()}.pth'))
