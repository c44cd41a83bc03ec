"""A checkpoint hook that loses nothing: to a crash while saving, a full disk, a damaged file, or a scheduler."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_world_size, is_main_process
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import distributed
from torch.utils.data._utils import signal_handling

from ..engine.settings import check_keys
from ..mixing import mix_in
from .files import BACKEND, DurableBackend, write_durably
from .loading import CheckpointError
from .resuming import INTERRUPTED, SkipsDone, check_resumable, checkpoints_of, newest_good, unsound, warn


class SafeCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook``, with all its options, for runs that may end at any moment.

    - A checkpoint is written aside, with its SHA-256, brought to disk and renamed; then ``last_checkpoint`` names it,
      and older ones are removed. If it cannot be written, nothing of it stays and nothing is removed.
    - On SIGTERM the run finishes its iteration, writes ``interrupted.pth`` and exits with 143. A resumed run goes on
      within the epoch: it loads the data of the finished iterations and skips them.
    - A checkpoint is checked before it is resumed: whether it is whole, of this model, and has anchors. Without a
      path to resume from, the newest good checkpoint is taken, and the log names those that are not good.
    - A broken model is not saved over a good one: a checkpoint of weights that are not finite, or of a dynamic loss
      scale below 1e-4, ends the run.
    - A warning says if the checkpoint is of a run with epochs of another length, e.g. on another number of GPUs.

    Storage that is not local is written and resumed as by MMEngine. ``FlexibleRunner`` resumes before it calls any
    hook and writes by itself: only the order of removal and SIGTERM differ there.

    Raises:
        ValueError: If an option is unknown, or ``filename_tmpl`` gives all checkpoints the same name.
        CheckpointError: If a checkpoint cannot be written, or the model is broken; when resuming, if the named
            checkpoint is not good, or none is.

    Example:
        >>> default_hooks = dict(checkpoint=dict(type='SafeCheckpointHook', interval=1, max_keep_ckpts=2))
    """

    file_backend: Any

    def __init__(self, *args, **kwargs):
        known = [name for name, p in signature(CheckpointHook).parameters.items() if p.kind is not p.VAR_KEYWORD]
        check_keys(kwargs, known, 'SafeCheckpointHook')  # MMEngine's hook fails at the first checkpoint
        super().__init__(*args, **kwargs)
        if self.filename_tmpl.count('{}') != 1:
            what = f'SafeCheckpointHook.filename_tmpl={self.filename_tmpl!r} has no {{}} for the number'
            raise ValueError(f"{what} of the checkpoint; give one, e.g. 'epoch_{{}}.pth'")
        self._done_in_epoch = 0
        _outlive_sigterm_in_workers()

    def before_run(self, runner) -> None:
        if not isinstance(runner, Runner) or not runner._resume:
            return
        if runner._load_from is None and '://' not in str(self.out_dir):
            runner._load_from = newest_good(runner, checkpoints_of(runner, self.out_dir, self.filename_tmpl))
            runner._resume = runner._load_from is not None
        elif os.path.isfile(runner._load_from or ''):
            check_resumable(runner._load_from, runner)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        meta = checkpoint.get('meta', {}) if runner._resume else {}
        done, there, here = meta.get('done_in_epoch', 0), meta.get('epoch_length'), _epoch_length(runner)
        if there and here and there != here:
            done = done * here // there
            warn(
                f'The checkpoint is of a run with {there} iterations an epoch, in {meta["world_size"]} process(es), '
                f'and here are {here}, in {get_world_size()}. lr and schedules go on as they were saved, in '
                'iterations: set train_dataloader.batch_size so that the total batch is the same'
            )
        self._done_in_epoch = done

    def before_train(self, runner) -> None:
        super().before_train(runner)
        if type(self.file_backend) is LocalBackend:
            self.backend_args = dict(backend=BACKEND)
            self.file_backend = get_file_backend(backend_args=self.backend_args)
            if is_main_process():
                for left in Path(self.out_dir).glob('.*.part'):  # of a process that was killed
                    left.unlink()
        self._termination = _Termination()

    def before_train_epoch(self, runner) -> None:
        loop, done, self._done_in_epoch = runner.train_loop, self._done_in_epoch, 0
        if done and isinstance(loop, EpochBasedTrainLoop):
            print_log(f'Skipping the first {done} iterations of this epoch, which are done', logger='current')
            mix_in(loop, SkipsDone)
        if isinstance(loop, SkipsDone):
            loop.done_in_epoch = done

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        if self._termination.requested():
            done = batch_idx + 1 if _epoch_length(runner) else 0
            meta = dict(epoch=runner.epoch, iter=runner.iter + 1, done_in_epoch=done)
            self._save(runner, INTERRUPTED, meta, by_epoch=False)
            warn(f'SIGTERM: saved {self.last_ckpt} after iteration {runner.iter + 1}; --resume goes on from there')
            self._termination.exit()

    def after_train(self, runner) -> None:
        self._termination.stop()
        super().after_train(runner)

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        # as MMEngine's, but outdated checkpoints go after the new one is there, and last_checkpoint changes at once
        if self.max_keep_ckpts > 0 and step not in list(self.keep_ckpt_ids)[-1:]:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated = self.filename_tmpl.format(self.keep_ckpt_ids.popleft())
                self.file_backend.remove(self.file_backend.join_path(self.out_dir, outdated))
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        self._save(runner, self.filename_tmpl.format(step), meta, self.by_epoch)

    def _save(self, runner, name: str, meta: dict, by_epoch: bool) -> None:
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        fault = unsound(runner)
        if fault is not None:
            remedy = 'Resume with optim_wrapper.clip_grad=dict(max_norm=1.0), or start anew with a lower lr'
            raise CheckpointError(f'{self.last_ckpt} was not saved: {fault}. {_last_good(runner)} {remedy}')
        with self._writing(runner, self.last_ckpt):
            meta = dict(meta, world_size=get_world_size(), epoch_length=_epoch_length(runner))
            parts = dict(save_optimizer=self.save_optimizer, save_param_scheduler=self.save_param_scheduler)
            storage = dict(file_client_args=self.file_client_args, backend_args=self.backend_args)
            runner.save_checkpoint(self.out_dir, name, meta=meta, by_epoch=by_epoch, **parts, **storage)
            if is_main_process():
                write_durably(Path(runner.work_dir, 'last_checkpoint'), os.fsencode(self.last_ckpt))

    def _save_best_checkpoint(self, runner, metrics: dict) -> None:
        with self._writing(runner, 'the best checkpoint'):
            super()._save_best_checkpoint(runner, metrics)

    @contextmanager
    def _writing(self, runner, what: str) -> Iterator[None]:
        """Explain why a checkpoint cannot be written; once it is, remove the outdated ones."""
        try:
            yield
        except OSError as error:
            remedy = 'Make room or mend the directory, then go on with --resume'
            raise CheckpointError(f'{what} could not be saved: {error}. {_last_good(runner)} {remedy}') from error
        if is_main_process() and isinstance(self.file_backend, DurableBackend):
            best = getattr(self, 'best_ckpt_path_dict', {}).values()
            self.file_backend.clean_up(self.last_ckpt, getattr(self, 'best_ckpt_path', None), *best)


def _last_good(runner) -> str:
    pointer = Path(runner.work_dir, 'last_checkpoint')
    return f'The last good checkpoint is {pointer.read_text()}.' if pointer.is_file() else 'There is none before it.'


def _epoch_length(runner) -> int | None:
    loop = getattr(runner, '_train_loop', None)
    return len(loop.dataloader) if isinstance(loop, EpochBasedTrainLoop) else None


class _Termination:
    """SIGTERM, noted from now on in place of ending the process at once."""

    def __init__(self):
        self._noted, self._handler = False, None
        # on the CPU: no waiting for GPUs
        self._group = distributed.new_group(backend='gloo') if get_world_size() > 1 else None
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGTERM, self._note)

    def _note(self, *_) -> None:
        self._noted = True

    def requested(self) -> bool:
        """Whether any process of the job got SIGTERM; all of them ask at the same iteration, and stop together."""
        if self._group is None:
            return self._noted
        noted = torch.tensor(int(self._noted))
        distributed.all_reduce(noted, distributed.ReduceOp.MAX, group=self._group)
        return bool(noted)

    def exit(self) -> None:
        """End the process with 143, once all processes are here: a launcher kills the others when one ends."""
        if self._group is not None:
            distributed.barrier(group=self._group)
        sys.exit(128 + signal.SIGTERM)

    def stop(self) -> None:
        """Give SIGTERM back to its earlier handler."""
        if self._handler is not None:
            signal.signal(signal.SIGTERM, self._handler)


_set_handlers = signal_handling._set_worker_signal_handlers


def _outlive_sigterm_in_workers() -> None:
    """Make workers of data loaders end when their parent says so: schedulers send SIGTERM to all processes of a job."""
    # A function of torch is replaced. `worker_init_fn` is the public way, but workers of an iteration-based loop can
    # start before any hook is called, and other hooks set that option.
    signal_handling._set_worker_signal_handlers = _set_handlers_and_outlive


def _set_handlers_and_outlive() -> None:
    _set_handlers()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
