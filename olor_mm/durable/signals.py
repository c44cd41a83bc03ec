"""SIGTERM, with which schedulers end a job: a training stops at its next iteration, workers go on until it says so."""

import os
import signal
import sys
import threading

import torch
from mmengine.dist import get_world_size
from torch import distributed
from torch.utils.data._utils import signal_handling


class Termination:
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


def outlive_sigterm_in_workers() -> None:
    """Make workers of data loaders end when their parent says so, and only then.

    A scheduler sends SIGTERM to all processes of a job, and torch ends a training at once if its workers are gone.
    """
    # A function of torch is replaced. `worker_init_fn` is the public way, but workers of an iteration-based loop can
    # start before any hook is called, and other hooks set that option.
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
