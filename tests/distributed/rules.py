"""Rules other than OLOR with sharded parameters or states, beside the same in one process: rules WORK_DIR.

Weights by kind and rule, or the error that refuses them, are written to WORK_DIR/rank_R.pth.
"""

import os

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from olor_mm.engine import ZeroRedundancyOptimizerOLOR
from olor_mm.optim import AdamWOLOR

OPTIONS = dict(
    l2sp=dict(rollback=0.5, rollback_new=0.2),
    l2sp_decoupled=dict(rollback=5.0, rollback_new=2.0),
    spd=dict(rollback=1.0),
    drift=dict(rollback=0.5),
)


def made() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))


def train(kind: str, rule: str) -> list[torch.Tensor]:
    model = made()
    if kind == 'fsdp':
        fully_shard(model)
    options = dict(lr=1e-2, rollback_rule=rule, **OPTIONS[rule])
    if kind == 'zero':
        optimizer = ZeroRedundancyOptimizerOLOR(model.parameters(), 'AdamW', **options)
    else:
        optimizer = AdamWOLOR(model.parameters(), **options)
    old = set(model[0].parameters())
    optimizer.select_pretrained = lambda params: [p for p in params if p in old]
    for step in range(12):
        inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(step // 6))
        optimizer.zero_grad()
        ((-1) ** (step // 3) * model(inputs).sin().sum()).backward()
        optimizer.step()
    return [p.full_tensor() if hasattr(p, 'full_tensor') else p.detach() for p in model.parameters()]


def main(arguments: list[str]) -> None:
    [work_dir] = arguments
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    ended: dict = dict(start=[p.detach() for p in made()[0].parameters()])  # of those that are pulled
    for rule in OPTIONS:
        for kind in ('alone', 'zero', 'fsdp'):
            try:
                ended[kind, rule] = train(kind, rule)
            except ValueError as error:
                ended[kind, rule] = str(error)
    os.makedirs(work_dir, exist_ok=True)
    torch.save(ended, os.path.join(work_dir, f'rank_{torch.distributed.get_rank()}.pth'))
