"""A checkpoint hook that loses nothing: to a crash while saving, a full disk, a damaged file, or a scheduler."""

import errno
import glob
import inspect
import logging
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_world_size, is_main_process
from mmengine.fileio import LocalBackend, get_file_backend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import distributed
from torch.utils.data._utils import signal_handling

from ..compat import unwrapped
from ..names import nearest
from ..optim.state import check_loadable
from .loading import CheckpointError, load, marked
from .options import check_by_trial, check_types
from .settings import check_keys

BACKEND = 'olor_mm.durable'
INTERRUPTED = 'interrupted.pth'
COLLAPSED = 1e-4  # of a loss scale: gradients would have to be above 1e8 to overflow half precision with it


def write_durably(path: str | os.PathLike, *parts: bytes | memoryview) -> None:
    """Write a file so that at any moment, power cuts included, it is the old one or the new one.

    Raises:
        OSError: If it cannot be written; nothing new is there then.
    """
    path = Path(path)
    aside = path.with_name(f'.{path.name}.part')
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(aside, 'wb') as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)  # the new name is an entry in it
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@register_backend(BACKEND)
class DurableBackend(LocalBackend):
    """Local files, written durably and marked with their SHA-256; removed only when :meth:`clean_up` says so."""

    def __init__(self):
        self.outdated: list[str] = []

    def put(self, obj: bytes, filepath: str | os.PathLike) -> None:
        write_durably(filepath, *marked(obj))

    def remove(self, filepath: str | os.PathLike) -> None:
        self.outdated.append(os.path.abspath(filepath))

    rmtree = remove

    def clean_up(self, *keep: str | None) -> None:
        """Really remove what is outdated, but not these."""
        outdated, self.outdated = self.outdated, []
        for path in set(outdated) - {os.path.abspath(path) for path in keep if path}:
            if os.path.isdir(path):
                shutil.rmtree(path)
            elif os.path.exists(path):
                os.remove(path)


class SafeCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook``, with all its options, for runs that end at any moment.

    - A checkpoint is written aside, with its SHA-256, brought to disk and renamed; ``last_checkpoint`` names it after
      that. Only then are older ones removed. If it cannot be written, nothing of it stays and nothing is removed.
    - On SIGTERM, the iteration under way is finished, ``interrupted.pth`` written, and the process exits with 143. A
      resumed run goes on within the epoch: the data of its finished iterations are loaded and left out.
    - Resuming looks at the checkpoint first: whether it is whole, of this model, and with the anchors it was saved
      with. Without a path to resume from, the newest good checkpoint is taken, and the log names those that are not.
    - A model that is broken for good is not saved over a good one: the run ends at the checkpoint that would be of
      weights that are not finite, or of a dynamic loss scale that has fallen below 1e-4.
    - A warning says that the checkpoint is of a run with epochs of another length, as on another number of GPUs.

    Files on other storage than local are written and resumed as by MMEngine. ``FlexibleRunner`` resumes before it asks
    any hook and writes by itself, so that there the order of removal and SIGTERM are all that is different.

    Raises:
        ValueError: If an option is unknown, or nothing that the hook could do.
        CheckpointError: If a checkpoint cannot be written, or is not worth it; when resuming, if the one that is named
            is not good, or none is.

    Example:
        >>> default_hooks = dict(checkpoint=dict(type='SafeCheckpointHook', interval=1, max_keep_ckpts=2))
    """

    def __init__(self, *args, **kwargs):
        _check_options(kwargs)
        super().__init__(*args, **kwargs)
        self._terminated = False
        self._group = None
        self._done_in_epoch = 0
        _outlive_sigterm_in_workers()

    def before_run(self, runner) -> None:
        if not isinstance(runner, Runner) or not runner._resume:
            return
        if runner._load_from is None:
            runner._load_from = self._newest_good(runner)
            runner._resume = runner._load_from is not None
        elif os.path.isfile(runner._load_from):
            check_resumable(runner._load_from, runner)

    def _newest_good(self, runner) -> str | None:
        refused = []
        for file in self._saved(runner):
            try:
                check_resumable(file, runner)
            except CheckpointError as error:
                refused.append(str(error))
                print_log(f'Not resumed from: {error}', logger='current', level=logging.WARNING)
                continue
            if refused:
                message = f'Resuming from {file!r} instead, the newest checkpoint that is good'
                print_log(message, logger='current', level=logging.WARNING)
            return file
        if refused:
            raise CheckpointError(
                f'no checkpoint in {runner.work_dir!r} is good: '
                + '; '.join(refused)
                + '. To start anew, take another work directory, or leave out --resume'
            )
        print_log(f'No checkpoint in {runner.work_dir}: starting anew', logger='current', level=logging.WARNING)
        return None

    def _saved(self, runner) -> list[str]:
        """Checkpoints of the run: the one that ``last_checkpoint`` names, then the others, newest first."""
        folder = runner.work_dir
        if self.out_dir not in (None, folder):
            folder = os.path.join(self.out_dir, os.path.basename(folder.rstrip(os.sep)))
        names = (glob.escape(self.filename_tmpl.replace('{}', '\0')).replace('\0', '*'), INTERRUPTED)
        files = [file for name in names for file in glob.glob(os.path.join(glob.escape(folder), name))]
        files.sort(key=os.path.getmtime, reverse=True)
        pointer = Path(runner.work_dir, 'last_checkpoint')
        last = pointer.read_text(errors='replace').strip() if pointer.is_file() else ''
        if last and not os.path.isfile(last):
            print_log(f'{last!r} of last_checkpoint is not there', logger='current', level=logging.WARNING)
            if not files:
                raise CheckpointError(
                    f'{str(pointer)!r} names {last!r}, which is not there: put it back, or remove both'
                )
        elif last:
            files = [last] + [file for file in files if os.path.abspath(file) != os.path.abspath(last)]
        return files

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        meta = checkpoint.get('meta', {}) if runner._resume else {}
        done, there, here = meta.get('done_in_epoch', 0), meta.get('epoch_length'), _epoch_length(runner)
        if there and here and there != here:
            done = done * here // there
            message = (
                f'The checkpoint is of a run with {there} iterations an epoch, in {meta["world_size"]} process(es), '
                f'and here are {here}, in {get_world_size()}: a step sees another number of images. lr and the '
                'schedules go on as they were saved, in iterations; set train_dataloader.batch_size so that the total '
                'is as before'
            )
            print_log(message, logger='current', level=logging.WARNING)
        self._done_in_epoch = done

    def before_train(self, runner) -> None:
        super().before_train(runner)
        if type(self.file_backend) is LocalBackend and self.file_client_args is None:
            self.backend_args = dict(backend=BACKEND)
            self.file_backend: Any = get_file_backend(backend_args=self.backend_args)
            if is_main_process():
                for left in Path(self.out_dir).glob('.*.part'):  # of a process that was killed
                    left.unlink()
        if get_world_size() > 1:
            self._group = distributed.new_group(backend='gloo')  # on the CPU: no waiting for GPUs
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, *_) -> None:
        self._terminated = True

    def before_train_epoch(self, runner) -> None:
        loop, done, self._done_in_epoch = runner.train_loop, self._done_in_epoch, 0
        if done and isinstance(loop, EpochBasedTrainLoop):
            run_iter = loop.run_iter

            def run_or_skip(idx: int, data_batch) -> None:
                if idx >= done:
                    run_iter(idx, data_batch)
                elif idx == done - 1:
                    runner.call_hook('after_skipped_iters')

            print_log(f'The first {done} iterations of this epoch are done: leaving out their data', logger='current')
            loop.run_iter = run_or_skip

    def after_train_epoch(self, runner) -> None:
        vars(runner.train_loop).pop('run_iter', None)
        super().after_train_epoch(runner)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        if self._all_terminate():
            by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
            meta = dict(epoch=runner.epoch, iter=runner.iter + 1, done_in_epoch=batch_idx + 1 if by_epoch else 0)
            self.last_ckpt = self.file_backend.join_path(self.out_dir, INTERRUPTED)
            runner.message_hub.update_info('last_ckpt', self.last_ckpt)
            self._save(runner, INTERRUPTED, meta, by_epoch=False)
            message = f'SIGTERM: saved {self.last_ckpt} after iteration {runner.iter + 1}; --resume goes on from there'
            print_log(message, logger='current', level=logging.WARNING)
            if self._group is not None:
                distributed.barrier(group=self._group)  # one that exits has the others killed
            sys.exit(128 + signal.SIGTERM)

    def _all_terminate(self) -> bool:
        """Whether any process got SIGTERM, the same answer for all of them: they must stop at the same iteration."""
        if self._group is None:
            return self._terminated
        terminated = torch.tensor(int(self._terminated))
        distributed.all_reduce(terminated, distributed.ReduceOp.MAX, group=self._group)
        return bool(terminated)

    def after_train(self, runner) -> None:
        if hasattr(self, '_handler'):
            signal.signal(signal.SIGTERM, self._handler)
        super().after_train(runner)

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        # as MMEngine's, but what is outdated goes after the new one is there, and last_checkpoint changes at once
        if self.max_keep_ckpts > 0 and step not in list(self.keep_ckpt_ids)[-1:]:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated = self.filename_tmpl.format(self.keep_ckpt_ids.popleft())
                self.file_backend.remove(self.file_backend.join_path(self.out_dir, outdated))
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        self._save(runner, name, meta, by_epoch=self.by_epoch)

    def _save(self, runner, name: str, meta: dict, by_epoch: bool) -> None:
        last_good = Path(runner.work_dir, 'last_checkpoint')
        fault = _fault(runner)
        if fault is not None:
            raise CheckpointError(f'{self.last_ckpt} was not saved: {fault}. {_last_good(last_good)}')
        meta = dict(meta, world_size=get_world_size(), epoch_length=_epoch_length(runner))
        try:
            runner.save_checkpoint(
                self.out_dir,
                name,
                self.file_client_args,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
            if is_main_process():
                write_durably(last_good, os.fsencode(self.last_ckpt))
        except OSError as error:
            raise self._not_saved(self.last_ckpt, last_good, error) from error
        self._clean_up()

    def _save_best_checkpoint(self, runner, metrics: dict) -> None:
        try:
            super()._save_best_checkpoint(runner, metrics)
        except KeyError as error:
            near = nearest(error.args[0], metrics)
            near = f'did you mean {near[0]!r}?' if near else f'take one of {", ".join(metrics)}'
            raise ValueError(
                f'SafeCheckpointHook.save_best={error.args[0]!r} is no metric of this run; {near}'
            ) from error
        except OSError as error:
            raise self._not_saved('the best checkpoint', Path(runner.work_dir, 'last_checkpoint'), error) from error
        self._clean_up()

    def _clean_up(self) -> None:
        if is_main_process() and isinstance(self.file_backend, DurableBackend):
            best = getattr(self, 'best_ckpt_path_dict', {}).values()
            self.file_backend.clean_up(self.last_ckpt, getattr(self, 'best_ckpt_path', None), *best)

    def _not_saved(self, what: str, pointer: Path, error: OSError) -> CheckpointError:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        return CheckpointError(
            f'{what} could not be saved: {error}. Nothing of it was left behind. {_last_good(pointer)} '
            + ('Make room' if full else 'See to it that the directory can be written')
            + (', then go on with --resume' if pointer.is_file() else ', then start again')
        )


def _last_good(pointer: Path) -> str:
    return f'The last good checkpoint is {pointer.read_text()}.' if pointer.is_file() else 'There is none before it.'


def _epoch_length(runner) -> int | None:
    loop = getattr(runner, '_train_loop', None)
    return len(loop.dataloader) if isinstance(loop, EpochBasedTrainLoop) else None


def _fault(runner) -> str | None:
    """Why no training could go on from a checkpoint of this moment, and what to do."""
    remedy = 'go on with --resume and optim_wrapper.clip_grad=dict(max_norm=1.0), or start anew with a lower lr'
    weights = dict(runner.model.named_parameters())
    wrong = [name for name, weight in weights.items() if not _local(weight).isfinite().all()]
    # -inf is as good as any number in a mask
    wrong += [name for name, buffer in runner.model.named_buffers() if _local(buffer).isnan().any()]
    if wrong:
        return (
            f'{len(wrong)} tensors of the model are no longer finite, like {wrong[0]!r}, and stay so. Look in the log '
            f'for where loss became nan or inf; {remedy}'
        )
    scaler: Any = getattr(runner.optim_wrapper, 'loss_scaler', None)
    is_dynamic = scaler is not None and scaler.is_enabled() and runner.optim_wrapper._scale_update_param is None
    if is_dynamic and scaler.get_scale() < COLLAPSED:
        return (
            f'the loss scale has fallen to {scaler.get_scale():.3g}, since gradients are inf or nan in every step, and '
            f'such steps are left out: nothing is learned. {remedy[0].upper()}{remedy[1:]}, or without --amp'
        )
    return None


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if hasattr(tensor, 'to_local') else tensor


def _check_options(options: dict) -> None:
    """Refuse what MMEngine's hook takes, and stumbles over at the first checkpoint, or does nothing with."""
    where = SafeCheckpointHook.__name__
    known = inspect.signature(CheckpointHook).parameters
    known = {name: p for name, p in known.items() if p.kind is not inspect.Parameter.VAR_KEYWORD}
    check_keys(options, known, where)
    check_types(options, known, where)
    for key, what in dict(interval='never saves', max_keep_ckpts='keeps all').items():
        if options.get(key, 1) < 1 and options[key] != -1:
            raise ValueError(f'{where}.{key}={options[key]!r} is no number of 1 or more; give one, or -1, which {what}')
    template = options.get('filename_tmpl')
    if template is not None and not (isinstance(template, str) and template.count('{}') == 1):
        raise ValueError(
            f'{where}.filename_tmpl={template!r} has no {{}} for the number of the checkpoint; give one, e.g. '
            "'epoch_{}.pth'"
        )
    folder = options.get('out_dir')
    if folder is not None and not (isinstance(folder, (str, Path)) and str(folder)):
        raise ValueError(f"{where}.out_dir={folder!r} is no directory; give one, e.g. 'checkpoints'")

    def trial(some: dict) -> None:
        get_file_backend(some.get('out_dir') or '.', backend_args=CheckpointHook(**some).backend_args)

    check_by_trial(trial, options, known, where)
    for key in ('rule', 'greater_keys', 'less_keys'):
        if options.get(key) is not None and options.get('save_best') is None:
            message = (
                f"{where}.{key}={options[key]!r} is not used: it is for save_best, and that is not set; e.g. 'auto'"
            )
            print_log(message, logger='current', level=logging.WARNING)


def check_resumable(file: str, runner: Runner) -> None:
    """Refuse a checkpoint that a run cannot go on from, before anything of it is taken over.

    Args:
        file (str): A local checkpoint.
        runner (Runner): Its model and optimizer are built.

    Raises:
        CheckpointError: If it is damaged, has more in it than plain data, or is of another model or optimizer.
    """
    remedy = 'Resume with the config and the optimizer of that run, or take a checkpoint of this one'
    checkpoint = load(file, 'cpu')
    try:
        missing = [key for key in ('state_dict', 'meta', 'message_hub') if key not in checkpoint]
        if missing:
            raise ValueError(f'it has no {", ".join(missing)}: to start from its weights, use load_from, not --resume')
        here, there = (
            {name.removeprefix('module.'): getattr(value, 'shape', None) for name, value in states.items()}
            for states in (unwrapped(runner.model).state_dict(), checkpoint['state_dict'])
        )
        other = [name for name in {**here, **there} if here.get(name, '-') != there.get(name, '-')]
        if other:
            raise ValueError(
                f'it is of another model: {len(other)} of {len({**here, **there})} weights are of another shape or in '
                f'one of both only, like {other[0]!r}'
            )
        optimizer: Any = getattr(runner.optim_wrapper, 'optimizer', None)
        groups = getattr(optimizer, 'param_groups', [])
        if any(group.get('rollback') for group in groups):
            if 'optimizer' not in checkpoint:
                raise ValueError(
                    'it was saved without its optimizer, so the pre-trained weights to return to are not in it'
                )
            check_loadable(type(optimizer).__name__, checkpoint['optimizer'], groups, optimizer.defaults)
    except Exception as error:  # whatever a content of another form leads to
        known = isinstance(error, ValueError)
        what = str(error) if known else f'its content is not that of a checkpoint ({error!r})'
        raise CheckpointError(f'{file!r} cannot be resumed from: {what.rstrip(".")}. {remedy}') from error


def _outlive_sigterm_in_workers() -> None:
    """Let workers of data loaders end by order of their parent alone.

    A scheduler sends SIGTERM to all processes of a job, and torch ends a training whose workers have gone, wherever it
    is at that moment.
    """
    set_handlers = signal_handling._set_worker_signal_handlers
    if getattr(set_handlers, 'outlives_sigterm', False):
        return

    def set_handlers_and_outlive() -> None:
        set_handlers()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, daemon=True).start()

    set_handlers_and_outlive.outlives_sigterm = True  # type: ignore[attr-defined]
    signal_handling._set_worker_signal_handlers = set_handlers_and_outlive


def _end_with_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
