"""When ResumableRandomnessHook warns; tests/engine/test_runner.py and tests/tools resume with it."""

import random
import re

import numpy as np
import pytest
import torch
from hook_runs import config
from mmengine.runner import Runner

from olor_mm.engine import ResumableRandomnessHook
from olor_mm.engine.hooks.randomness import same_randomness


@pytest.mark.parametrize(
    'loop, loader, remedy',
    [
        (dict(by_epoch=True, max_epochs=1), dict(num_workers=1, persistent_workers=True), 'persistent_workers=False'),
        (dict(by_epoch=True, max_epochs=1), dict(num_workers=1, persistent_workers=False), None),
        (dict(by_epoch=True, max_epochs=1), dict(num_workers=0), None),
        (dict(by_epoch=False, max_iters=2), dict(num_workers=1, persistent_workers=True), 'num_workers=0|epoch-based'),
    ],
)
def test_the_hook_says_when_augmentation_will_not_repeat(data, tmp_path, capfd, loop, loader, remedy):
    cfg = config(tmp_path, data, log_level='WARNING')
    cfg.train_cfg = loop
    cfg.train_dataloader.update(loader)
    runner = Runner.from_cfg(cfg)
    ResumableRandomnessHook().before_train(runner)
    printed = ''.join(capfd.readouterr())
    assert re.search(remedy, printed) if remedy else 'ResumableRandomnessHook' not in printed


def test_what_is_drawn_within_changes_nothing_afterwards():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    def seed():
        for library in (random.seed, np.random.seed, torch.manual_seed):
            library(1)

    seed()
    expected = draw()
    seed()
    with same_randomness(torch.device('cpu')):
        draw()
    assert draw() == expected
