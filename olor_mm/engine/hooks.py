"""Hooks of MMEngine."""

import logging
from functools import partial
from typing import Any

from mmengine.dataset import worker_init_fn
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import IterBasedTrainLoop, set_random_seed
from torch.nn.parallel import DistributedDataParallel

from ..compat import unwrapped
from ..layers.index import backbones
from .settings import check_keys

STRIDE = 1_000_003  # between seeds, so that those of neighbouring user seeds do not meet


class HookWithoutOptions(Hook):
    """A hook whose config has nothing but its type.

    Raises:
        ValueError: If it has more.
    """

    def __init__(self, **options):
        check_keys(options, (), type(self).__name__)


class ResumableRandomnessHook(HookWithoutOptions):
    """Makes random numbers depend on seed and iteration alone, so that a resumed run repeats the one it resumes.

    MMEngine seeds once, when a run starts: after a resume, augmentation, sampling and dropout draw other numbers than
    the uninterrupted run would have. With this hook they draw the same, in every iteration and on every rank.
    Augmentation repeats too if ``train_dataloader`` has ``num_workers=0``, or, in an epoch-based loop,
    ``persistent_workers=False``; a warning says so otherwise. ``randomness.seed`` has to be set.

    Example:
        >>> custom_hooks = [dict(type='ResumableRandomnessHook')]
        >>> randomness = dict(seed=0)
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner) -> None:
        loop = runner.train_loop
        remedy = None
        if isinstance(loop, IterBasedTrainLoop):
            if not hasattr(loop.dataloader_iterator, 'skip_iter'):
                remedy = 'use an epoch-based loop: this version of MMEngine augments what it skips on resume'
            elif loop.dataloader.num_workers:
                remedy = 'set train_dataloader.num_workers=0'
        elif loop.dataloader.num_workers and loop.dataloader.persistent_workers:
            remedy = 'set train_dataloader.persistent_workers=False'
        if remedy is not None:
            message = f'ResumableRandomnessHook: augmentation will not repeat after a resume; {remedy}'
            print_log(message, logger='current', level=logging.WARNING)

    def before_train_epoch(self, runner) -> None:
        loader = runner.train_loop.dataloader
        stock: Any = getattr(loader.worker_init_fn, 'func', None)
        if stock is worker_init_fn:
            loader.worker_init_fn = partial(
                worker_init_fn, num_workers=loader.num_workers, rank=get_rank(), seed=self._seed(runner, runner.epoch)
            )
        self._reseed(runner, 2 * runner.iter)

    def after_skipped_iters(self, runner) -> None:
        self._reseed(runner, 2 * runner.iter)  # for loading the batch that a resumed epoch goes on with

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self._reseed(runner, 2 * runner.iter + 1)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self._reseed(runner, 2 * runner.iter + 2)  # for loading the next batch

    def _reseed(self, runner, moment: int) -> None:
        set_random_seed(self._seed(runner, moment))

    @staticmethod
    def _seed(runner, moment: int) -> int:
        # below 2^31: DataLoader workers add their number to it, and numpy takes 32 bits
        return (runner.seed + STRIDE * moment) % (2**31)


class ConsolidateOptimizerHook(HookWithoutOptions):
    """Gathers the state that ``ZeroRedundancyOptimizer`` spreads over processes before a checkpoint is saved.

    MMEngine saves on the first process alone; gathering takes all of them.

    Example:
        >>> custom_hooks = [dict(type='ConsolidateOptimizerHook')]
    """

    def before_run(self, runner) -> None:
        save = runner.save_checkpoint

        def gather_and_save(*args, **kwargs):
            optimizer = runner.optim_wrapper.optimizer
            if kwargs.get('save_optimizer', True) and hasattr(optimizer, 'consolidate_state_dict'):
                optimizer.consolidate_state_dict()
            return save(*args, **kwargs)

        runner.save_checkpoint = gather_and_save


class FreezeBackboneHook(HookWithoutOptions):
    """Linear probing for any model: its backbone is neither trained nor changed, and all else is trained.

    No parameter of the backbone is given a gradient, and its modules are in ``eval`` mode in every iteration: running
    statistics of norm layers stay as they are, and there is no dropout or drop path.

    Raises:
        ValueError: Before training, if the model has no part that is a backbone, or in ``DistributedDataParallel``
            that waits for gradients of all parameters.

    Example:
        >>> custom_hooks = [dict(type='FreezeBackboneHook')]
    """

    def before_run(self, runner) -> None:
        model = unwrapped(runner.model)
        parts = dict(backbones(model))
        if '' in parts:
            raise ValueError(
                f'FreezeBackboneHook: {type(model).__name__} has no part called backbone, so all of it would be '
                'frozen; its parts are ' + ', '.join(name for name, _ in model.named_children())
            )
        if isinstance(runner.model, DistributedDataParallel) and not runner.model.find_unused_parameters:
            raise ValueError(
                'find_unused_parameters=False: DistributedDataParallel waits for the gradients of a backbone that '
                'FreezeBackboneHook freezes after it has been wrapped; set find_unused_parameters=True in the config'
            )
        self.backbones = list(parts.values())
        params = [p for backbone in self.backbones for p in backbone.parameters()]
        for p in params:
            p.requires_grad_(False)
        where = ', '.join(prefix.rstrip('.') for prefix in parts)
        print_log(f'FreezeBackboneHook: {len(params)} parameter tensors of {where} are frozen', logger='current')

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        for backbone in self.backbones:  # loops call model.train(), after other hooks
            if backbone.training:
                backbone.eval()
