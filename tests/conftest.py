"""What tests share: the embedded data, the tools run as a user runs them, and a clean process for every test."""

import contextlib
import fcntl
import gc
import importlib.util
import io
import logging
import os
import random
import runpy
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from jobs import CLASSIFICATION, ROOT  # noqa: F401

try:
    from mmengine.utils import ManagerMixin
except ModuleNotFoundError:  # `make test-core`: torch alone

    class ManagerMixin:
        """Nothing is kept."""


if not torch.cuda.is_available():  # read when Triton is imported, which another test may do first
    os.environ.setdefault('TRITON_INTERPRET', '1')
ORDER = 'OLOR_TEST_ORDER'
HOOKED = torch.optim.Optimizer.profile_hook_step(lambda optimizer: None).__code__
TORCH = tuple(int(part) for part in torch.__version__.split('.')[:2])
needs_cpu_scaler = pytest.mark.skipif(TORCH < (2, 4), reason='no GradScaler on CPU before torch 2.4')
pytest_plugins = ['with_openmmlab'] if importlib.util.find_spec('mmengine') else []


class Done(NamedTuple):
    """What a tool that ran in this process ended with; both streams are in ``stdout``."""

    returncode: int
    stdout: str


def run(*command, check: bool = True, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """Run a command in a folder; its output, both streams in one, is shown if it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, 'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}', **environment},
    )
    return checked(done, command, check)


def tool(script, *arguments, check: bool = True, folder: Path = ROOT, **environment: str) -> Done:
    """Do what ``python SCRIPT ARGUMENTS`` does in a folder, in this process.

    To import the libraries takes a new process longer than most tools run. ``script`` is a file, or the name of a module
    that ``python -m`` would run.
    """
    output = io.StringIO()
    with clean_process(), contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        os.chdir(folder)
        os.environ.update(environment)
        sys.argv = [str(script), *map(str, arguments)]
        with warnings.catch_warnings():
            warnings.simplefilter('default', UserWarning)
            warnings.showwarning = lambda *warning: output.write(warnings.formatwarning(*warning[:4]))
            code = exit_code(script)
    return checked(Done(code, output.getvalue()), [script, *arguments], check)


def exit_code(script) -> int:
    """Run a script or module, and print what ends it as Python would."""
    try:
        if str(script).endswith('.py'):
            runpy.run_path(str(script), run_name='__main__')
        else:
            runpy.run_module(script, run_name='__main__', alter_sys=True)
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
            return 1
        return ended.code or 0
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def checked(done, command, check: bool):
    if check and done.returncode:
        raise AssertionError(f'{" ".join(map(str, command))} ended with {done.returncode}:\n{done.stdout[-6000:]}')
    return done


def train(config, work_dir, *options, check: bool = True, alone: bool = False, **environment: str):
    """Run tools/train.py, in a process of its own if ``alone``; options like key=value go to --cfg-options."""
    settings = [str(option) for option in options if not str(option).startswith('--')]
    flags = [str(option) for option in options if str(option).startswith('--')]
    command = ['tools/train.py', config, '--work-dir', work_dir, *flags]
    command += ['--cfg-options', *settings] if settings else []
    if alone:
        return run(sys.executable, *command, check=check, **environment)
    return tool(*command, check=check, **environment)


def load(file: Path) -> dict:
    return torch.load(file, map_location='cpu', weights_only=False)


def stock_models(library: str):
    """The registry of models of a library of OpenMMLab; where that is not installed, the test is skipped."""
    return pytest.importorskip(f'{library}.registry').MODELS


def anchors(checkpoint: dict, names: list[str]) -> dict[str, torch.Tensor]:
    """Anchors in a checkpoint of MMEngine by the name of their parameter, given the names in the optimizer's order."""
    state = checkpoint['optimizer']['state']
    return {names[i]: entry['anchor'] for i, entry in state.items() if 'anchor' in entry}


def optimizer_names(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the parameters in the order in which a saved optimizer state numbers them."""
    names = {p: name for name, p in model.named_parameters()}
    return [names[p] for group in optimizer.param_groups for p in group['params']]


def managers(cls: type = ManagerMixin) -> Iterator[type]:
    """Classes of MMEngine that keep what they made for the whole process: loggers, message hubs, visualizers, scopes."""
    for subclass in cls.__subclasses__():
        yield subclass
        yield from managers(subclass)


@contextlib.contextmanager
def clean_process() -> Iterator[None]:
    """Take back what runs and tools leave in a process: loggers, scopes, signal handlers, and what they set."""
    kept = {manager: manager._instance_dict.copy() for manager in managers()}
    argv, path, folder, environment = list(sys.argv), list(sys.path), os.getcwd(), dict(os.environ)
    torch_load, handler = torch.load, signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        torch.load, sys.argv, sys.path[:] = torch_load, argv, path
        for cls in torch.optim.Optimizer.__subclasses__() if TORCH < (2, 2) else ():  # torch.compile takes their hooks
            if getattr(vars(cls).get('step'), 'hooked', False) and cls.step.__code__ is not HOOKED:
                cls.step = cls.profile_hook_step(cls.step)
        signal.signal(signal.SIGTERM, handler)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        for manager in managers():
            before = kept.get(manager, {})
            for name, made in manager._instance_dict.items():
                if name not in before and isinstance(made, logging.Logger):
                    for log in made.handlers:
                        log.close()
            manager._instance_dict = type(manager._instance_dict)(before)


@pytest.fixture(autouse=True)
def a_clean_process() -> Iterator[None]:
    """No test sees what another one left, nor what it drew from the generators of random numbers."""
    with clean_process():
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        yield


@pytest.fixture
def weights_at_once(monkeypatch):
    """Models start from copies of one block of noise: to draw all weights of a large one takes seconds."""
    noise = torch.randn(99991, generator=torch.Generator().manual_seed(0))

    def fill(tensor: torch.Tensor, *_, **__) -> torch.Tensor:
        scale = (tensor.numel() / len(tensor)) ** -0.5 if tensor.ndim > 1 else 0.02
        copies = -(-tensor.numel() // len(noise))
        with torch.no_grad():
            return tensor.copy_((noise * scale).repeat(copies)[: tensor.numel()].view_as(tensor))

    for name in (
        'uniform_',
        'normal_',
        'trunc_normal_',
        *(f'{by}_{of}_' for by in ('kaiming', 'xavier') for of in ('uniform', 'normal')),
    ):
        monkeypatch.setattr(torch.nn.init, name, fill)


@pytest.fixture(scope='session')
def data() -> Path:
    """The embedded data and weights, made once."""
    pytest.importorskip('mmengine')
    (ROOT / '.cache').mkdir(exist_ok=True)
    with open(ROOT / '.cache/data.lock', 'w') as lock:  # tests run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        tool('tools/dataset_converters/embedded.py')
    return ROOT / 'data'


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With a seed in OLOR_TEST_ORDER, shuffle files and the tests in each."""
    if seed := os.environ.get(ORDER):
        shuffled = random.Random(seed)
        files = {}
        for item in items:
            files.setdefault(item.path, []).append(item)
        groups = [shuffled.sample(group, len(group)) for group in files.values()]
        items[:] = [item for group in shuffled.sample(groups, len(groups)) for item in group]


def pytest_collection_finish() -> None:
    """Leave what was imported out of later garbage collections, which take a second each with all of OpenMMLab."""
    gc.collect()
    gc.freeze()
