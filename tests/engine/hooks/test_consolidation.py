"""The state of MMEngine's ZeRO in checkpoints, in a process group of one; tests/distributed has groups of several."""

import pytest
import torch
from conftest import load
from hook_runs import process_group
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

import olor_mm  # noqa: F401


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, inputs, mode='tensor'):
        return dict(loss=self.head(self.backbone(inputs)).square().sum())


def trained(work_dir, save_optimizer: bool) -> Runner:
    runner = Runner(
        model=Model(),
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=[dict(inputs=torch.ones(4))] * 2,
            batch_size=1,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(
            constructor='OLOROptimWrapperConstructor',
            optimizer=dict(type='ZeroRedundancyOptimizer', optimizer_type='AdamW', lr=0.1),
            paramwise_cfg=dict(rollback=dict(max_level=0.1, pretrained=['backbone'])),
        ),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1, save_optimizer=save_optimizer)),
        custom_hooks=[dict(type='ConsolidateOptimizerHook')],
        experiment_name=str(work_dir).replace('/', '_'),
        log_level='ERROR',
    )
    runner.train()
    return runner


def test_a_checkpoint_has_the_gathered_state(tmp_path):
    with process_group(tmp_path):
        runner = trained(tmp_path, save_optimizer=True)
        assert 'save_checkpoint' not in vars(runner)
        for epoch in (1, 2):
            states = load(tmp_path / f'epoch_{epoch}.pth')['optimizer']['state'].values()
            assert len(states) == 4 and all('exp_avg' in state for state in states)
            assert sum('anchor' in state for state in states) == 2
        gathered, calls = type(runner), []
        runner.call_hook('before_run')  # as Runner.test() does after Runner.train()
        assert type(runner) is gathered
        runner.optim_wrapper.optimizer.consolidate_state_dict = lambda: calls.append(1)
        runner.save_checkpoint(str(tmp_path), 'again.pth')
        assert calls == [1]


def test_nothing_is_gathered_for_a_checkpoint_without_the_optimizer(tmp_path):
    with process_group(tmp_path):
        runner = trained(tmp_path, save_optimizer=False)
        assert 'optimizer' not in load(tmp_path / 'epoch_2.pth')
        with pytest.raises(RuntimeError, match='was not gathered'):
            runner.optim_wrapper.optimizer.state_dict()
