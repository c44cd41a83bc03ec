"""What FreezeBackboneHook refuses; tests/engine/test_finetune.py trains with it."""

from types import SimpleNamespace

import pytest
import torch
from hook_runs import process_group
from torch import nn

from olor_mm.engine import FreezeBackboneHook


def test_a_model_without_a_backbone_is_refused():
    with pytest.raises(ValueError, match='Sequential has no backbone .*0'):
        FreezeBackboneHook().before_run(SimpleNamespace(model=nn.Sequential(nn.Linear(2, 2))))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.head(self.backbone(x))


def test_ddp_has_to_find_unused_parameters(tmp_path):
    with process_group(tmp_path):
        waiting = nn.parallel.DistributedDataParallel(Model())
        with pytest.raises(ValueError, match='find_unused_parameters=False: set it to True'):
            FreezeBackboneHook().before_run(SimpleNamespace(model=waiting))
        wrapped = nn.parallel.DistributedDataParallel(Model(), find_unused_parameters=True)
        FreezeBackboneHook().before_run(SimpleNamespace(model=wrapped))
        for _ in range(3):
            wrapped(torch.ones(1, 2)).sum().backward()
        assert wrapped.module.backbone.weight.grad is None
        assert wrapped.module.head.weight.grad is not None
