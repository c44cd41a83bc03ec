"""Random numbers that neither a resume nor a measurement changes."""

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from mmengine.dataset import worker_init_fn
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import IterBasedTrainLoop, set_random_seed

STRIDE = 1_000_003  # between seeds, so that runs with neighbouring user seeds never share one


class ResumableRandomnessHook(Hook):
    """Makes random numbers depend on seed and iteration alone, so that a resumed run repeats the one it resumes.

    MMEngine seeds once, when a run starts: after a resume, augmentation, sampling and dropout draw other numbers than
    the uninterrupted run would have. With this hook they draw the same, in every iteration and on every rank.
    Augmentation repeats too if ``train_dataloader`` has ``num_workers=0``, or, in an epoch-based loop,
    ``persistent_workers=False``; otherwise the hook warns. Set ``randomness.seed``.

    Example:
        >>> custom_hooks = [dict(type='ResumableRandomnessHook')]
        >>> randomness = dict(seed=0)
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner) -> None:
        loop, loader = runner.train_loop, runner.train_loop.dataloader
        by_iteration = isinstance(loop, IterBasedTrainLoop)
        if by_iteration and not hasattr(loop.dataloader_iterator, 'skip_iter'):
            remedy = 'use an epoch-based loop: this version of MMEngine augments what it skips on resume'
        elif by_iteration and loader.num_workers:
            remedy = 'set train_dataloader.num_workers=0'
        elif loader.persistent_workers:
            remedy = 'set train_dataloader.persistent_workers=False'
        else:
            return
        message = f'ResumableRandomnessHook: augmentation will not repeat after a resume; {remedy}'
        print_log(message, logger='current', level=logging.WARNING)

    def before_train_epoch(self, runner) -> None:
        loader = runner.train_loop.dataloader
        if getattr(loader.worker_init_fn, 'func', None) is worker_init_fn:
            loader.worker_init_fn = partial(loader.worker_init_fn, seed=_seed(runner, runner.epoch))
        set_random_seed(_seed(runner, 2 * runner.iter))

    def after_skipped_iters(self, runner) -> None:
        set_random_seed(_seed(runner, 2 * runner.iter))  # for loading the first batch of a resumed epoch

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        set_random_seed(_seed(runner, 2 * runner.iter + 1))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        set_random_seed(_seed(runner, 2 * runner.iter + 2))  # for loading the next batch


def _seed(runner, moment: int) -> int:
    return (runner.seed + STRIDE * moment) % 2**31  # DataLoader workers add their number, and numpy takes 32 bits


@contextmanager
def same_randomness(device: torch.device) -> Iterator[None]:
    """Let random numbers afterwards go on as if nothing had been drawn within."""
    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == 'cuda' else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)
