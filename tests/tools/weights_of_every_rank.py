"""A hook, imported by configs of tests: what each process has in memory when training ends."""

from pathlib import Path

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class SaveWeightsOfEveryRank(Hook):
    def after_train(self, runner) -> None:
        names = {p: name for name, p in runner.model.module.named_parameters()}
        state = runner.optim_wrapper.optimizer.state
        torch.save(
            dict(
                weights=runner.model.module.state_dict(),
                anchors={names[p]: entry['anchor'] for p, entry in state.items() if 'anchor' in entry},
            ),
            Path(runner.work_dir) / f'rank_{get_rank()}.pth',
        )
