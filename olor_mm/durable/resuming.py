"""Whether a run can go on: from the checkpoints it finds, and from a checkpoint of what it has now."""

import glob
import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, Runner

from ..layers import unwrapped
from ..optim.state import check_loadable
from .loading import CheckpointError, load

INTERRUPTED = 'interrupted.pth'
COLLAPSED = 1e-4  # of a loss scale: only gradients above 1e8 overflow half precision with it
warn = partial(print_log, logger='current', level=logging.WARNING)


def checkpoints_of(runner: Runner, out_dir: str | os.PathLike | None, template: str) -> list[str]:
    """The checkpoint that ``last_checkpoint`` names, then the others of the run, newest first."""
    folder = Path(out_dir or runner.work_dir)
    if out_dir not in (None, runner.work_dir):
        folder /= os.path.basename(runner.work_dir.rstrip(os.sep))
    names = ('*'.join(map(glob.escape, template.split('{}'))), INTERRUPTED)
    files = [str(file.absolute()) for name in names for file in folder.glob(name)]
    pointer = Path(runner.work_dir, 'last_checkpoint')
    last = pointer.read_text(errors='replace').strip() if pointer.is_file() else ''
    newest = sorted(files, key=os.path.getmtime, reverse=True)
    return list(dict.fromkeys(map(os.path.abspath, [last] * bool(last) + newest)))


def newest_good(runner: Runner, files: list[str]) -> str | None:
    """The first of these checkpoints that the run can go on from; None if there are no checkpoints."""
    refused = []
    for file in files:
        try:
            check_resumable(file, runner)
        except CheckpointError as error:
            refused.append(str(error))
            warn(f'Not resumed from: {error}')
        else:
            if refused:
                warn(f'Resuming from {file!r} instead, the newest good checkpoint')
            return file
    if refused:
        remedy = 'To start anew, take another work directory, or leave out --resume'
        raise CheckpointError(f'no checkpoint in {runner.work_dir!r} is good: {"; ".join(refused)}. {remedy}')
    warn(f'No checkpoint in {runner.work_dir}: starting anew')
    return None


def check_resumable(file: str, runner: Runner) -> None:
    """Refuse a local checkpoint that a run cannot go on from, before anything of it is loaded."""
    try:
        checkpoint = load(file, 'cpu')
    except OSError as error:
        raise CheckpointError(f'{file!r} cannot be read: {error.strerror}') from error
    try:
        fault = _misfit(checkpoint, runner)
    except ValueError as error:
        fault = str(error)
    except Exception as error:  # content of another form leads to errors of any type
        fault = f'its content is not that of a checkpoint ({error!r})'
    if fault is not None:
        remedy = 'Resume with the config and the optimizer of that run, or take a checkpoint of this one'
        raise CheckpointError(f'{file!r} cannot be resumed from: {fault.rstrip(".")}. {remedy}')


def _misfit(checkpoint: Any, runner: Runner) -> str | None:
    missing = [key for key in ('state_dict', 'meta', 'message_hub') if key not in checkpoint]
    if missing:
        return f'it has no {", ".join(missing)}: to start from its weights, use load_from, not --resume'
    here, there = (
        {name.removeprefix('module.'): getattr(value, 'shape', None) for name, value in states.items()}
        for states in (unwrapped(runner.model).state_dict(), checkpoint['state_dict'])
    )
    other = sorted({name for name, _ in here.items() ^ there.items()})
    if other:
        return f'it is of another model: {len(other)} weights have another shape or are missing, like {other[0]!r}'
    optimizer: Any = getattr(runner.optim_wrapper, 'optimizer', None)
    groups = getattr(optimizer, 'param_groups', [])
    if any(group.get('rollback') for group in groups):
        if 'optimizer' not in checkpoint:
            return 'it was saved without its optimizer, so it does not have the pre-trained weights to return to'
        check_loadable(type(optimizer).__name__, checkpoint['optimizer'], groups, optimizer.defaults)
    return None


def unsound(runner: Runner) -> str | None:
    """Why no training could go on from a checkpoint of this moment; None if it could."""
    wrong = [name for name, weight in runner.model.named_parameters() if not _local(weight).isfinite().all()]
    # masks may have -inf
    wrong += [name for name, buffer in runner.model.named_buffers() if _local(buffer).isnan().any()]
    if wrong:
        return f'{len(wrong)} tensors of the model are no longer finite, like {wrong[0]!r}'
    scaler: Any = getattr(runner.optim_wrapper, 'loss_scaler', None)
    is_dynamic = scaler is not None and scaler.is_enabled() and runner.optim_wrapper._scale_update_param is None
    if is_dynamic and scaler.get_scale() < COLLAPSED:
        return f'the loss scale has fallen to {scaler.get_scale():.3g}: no step is made, as gradients are inf or nan'
    return None


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if hasattr(tensor, 'to_local') else tensor


class SkipsDone(EpochBasedTrainLoop):
    """Mixin for a loop that resumes within an epoch: loads the data of the iterations that are done and skips them."""

    done_in_epoch = 0

    def run_iter(self, idx, data_batch) -> None:
        if idx >= self.done_in_epoch:
            super().run_iter(idx, data_batch)
        elif idx == self.done_in_epoch - 1:
            self.runner.call_hook('after_skipped_iters')
