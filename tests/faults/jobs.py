"""Trainings as a scheduler starts them, in processes of their own, and ways to end them."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
CLASSIFICATION = 'configs/classification/olor/mobilenet-v2_olor_1xb32-10e_digits-64px.py'


def start(work_dir: Path, *options: str, processes: int = 0, command=None, **environment: str) -> subprocess.Popen:
    """A training in a session of its own, by torchrun if there are ``processes``; its output is added to WORK_DIR.log.

    Options that begin with ``--`` go to tools/train.py, the others to ``--cfg-options``.
    """
    tool = ['bash', 'tools/dist_train.sh'] if processes else [sys.executable, 'tools/train.py']
    arguments = [CLASSIFICATION, *([str(processes)] if processes else []), '--work-dir', str(work_dir)]
    arguments += [o for o in options if o.startswith('--')]
    settings = [o for o in options if not o.startswith('--')]
    with open(f'{work_dir}.log', 'a') as log:
        return subprocess.Popen(
            [*map(str, command or tool), *arguments, *(['--cfg-options', *settings] if settings else [])],
            cwd=ROOT,
            env={
                **os.environ,
                'OMP_NUM_THREADS': '1',
                'PYTHONPATH': f'{ROOT}{os.pathsep}{os.environ.get("PYTHONPATH", "")}',
                'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}',
                'PORT': str(free_port()),
                **environment,
            },
            start_new_session=True,
            stdout=log,
            stderr=log,
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def wait_for(process: subprocess.Popen, condition: Callable[[], object]) -> bool:
    """Wait for a condition; False if the process ends before."""
    while process.poll() is None:
        if condition():
            return True
        time.sleep(0.001)
    return False


def end(process: subprocess.Popen, sign: signal.Signals) -> int:
    """Send a signal to the session of a process."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, sign)
    return process.wait(100)


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL to a process and all it has started: torchrun gives each of its processes a session of its own."""
    for pid in [process.pid, *descendants(process.pid)]:
        kill(pid)
    process.wait(100)


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    found = []
    for file in Path(f'/proc/{pid}/task').glob('*/children'):
        with contextlib.suppress(OSError):
            found += map(int, file.read_text().split())
    return found


def descendants(pid: int) -> Iterator[int]:
    for child in children(pid):
        yield child
        yield from descendants(child)
