"""The baselines with sharded parameters or states, beside the same in one process: rules.py, without arguments."""

import os

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from olor_mm.engine import ZeroRedundancyOptimizerOLOR
from olor_mm.optim import AdamWOLOR

OPTIONS = dict(
    l2sp=dict(rollback=0.5, rollback_new=0.2),
    l2sp_decoupled=dict(rollback=5.0, rollback_new=2.0),
    spd=dict(rollback=1.0),
)


def train(kind: str, rule: str) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))
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


def main() -> None:
    torch.distributed.init_process_group('gloo')
    for rule in OPTIONS:
        alone = train('alone', rule)
        for kind in ('zero', 'fsdp'):
            if (kind, rule) == ('fsdp', 'spd'):
                with pytest.raises(ValueError, match='compares whole parameter tensors'):
                    train(kind, rule)
                continue
            for p, q in zip(train(kind, rule), alone):
                torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


if __name__ == '__main__':
    main()
    os._exit(0)  # now and then gloo's threads abort an interpreter that ends, stock optimizer or not
