"""What tests share: the embedded data, and the tools run as a user runs them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from jobs import CLASSIFICATION, ROOT  # noqa: F401


def run(*command, check: bool = True, **environment: str) -> subprocess.CompletedProcess:
    """Run a command in the root of the repository; its output, both streams in one, is shown if it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, 'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}', **environment},
    )
    if check and done.returncode:
        raise AssertionError(f'{" ".join(map(str, command))} ended with {done.returncode}:\n{done.stdout[-6000:]}')
    return done


def train(config, work_dir, *options, check: bool = True, **environment: str) -> subprocess.CompletedProcess:
    """Run tools/train.py; options that look like key=value go to --cfg-options."""
    settings = [str(option) for option in options if not str(option).startswith('--')]
    flags = [str(option) for option in options if str(option).startswith('--')]
    command = [sys.executable, 'tools/train.py', config, '--work-dir', work_dir, *flags]
    return run(*command, *(['--cfg-options', *settings] if settings else []), check=check, **environment)


def load(file: Path) -> dict:
    return torch.load(file, map_location='cpu', weights_only=False)


def anchors(checkpoint: dict, names: list[str]) -> dict[str, torch.Tensor]:
    """Anchors in a checkpoint of MMEngine by the name of their parameter, given the names in the optimizer's order."""
    state = checkpoint['optimizer']['state']
    return {names[i]: entry['anchor'] for i, entry in state.items() if 'anchor' in entry}


def optimizer_names(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the parameters in the order in which a saved optimizer state numbers them."""
    names = {p: name for name, p in model.named_parameters()}
    return [names[p] for group in optimizer.param_groups for p in group['params']]


@pytest.fixture(autouse=True)
def stock_torch_load(monkeypatch):
    """Take back what the tools do when a test calls them in this process: to this function, and to the environment."""
    monkeypatch.setattr(torch, 'load', torch.load)
    yield
    os.environ.pop('LOCAL_RANK', None)


@pytest.fixture(scope='session')
def data() -> Path:
    """The embedded data and weights, made once."""
    run(sys.executable, 'tools/dataset_converters/embedded.py')
    return ROOT / 'data'
