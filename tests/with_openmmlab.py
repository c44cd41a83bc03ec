"""What tests share where OpenMMLab is installed: `conftest.py` loads it as a plugin of pytest."""

import functools
import importlib
import logging
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
import torch
from mmengine._strategy import BaseStrategy
from mmengine.logging import MMLogger
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.runner import Runner
from yapf.yapflib import yapf_api

import olor_mm.cli.config_text  # noqa: F401  with the real FormatCode

TIMESTAMP = '%Y%m%d_%H%M%S'  # of MMEngine
needs_operators = pytest.mark.skipif(
    getattr(importlib.import_module('mmcv._ext'), 'IS_FROM_TORCHVISION', False),
    reason='mmcv is without its compiled operators here: make operators',
)


@pytest.fixture
def log(monkeypatch):
    """What MMEngine logs."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    monkeypatch.setattr(MMLogger, 'callHandlers', lambda self, record: handler.handle(record))
    return lines


@pytest.fixture(autouse=True, scope='session')
def a_timestamp_for_every_run() -> None:
    """MMEngine names runs by the second they begin in, and gives the second run of a name the logger of the first."""
    taken = set()

    def with_own_timestamp(set_up: Callable) -> Callable:
        @functools.wraps(set_up)
        def wrapped(self, *args, **kwargs):
            set_up(self, *args, **kwargs)
            moment = datetime.strptime(self._timestamp, TIMESTAMP)
            while moment in taken:
                moment += timedelta(seconds=1)
            taken.add(moment)
            self._timestamp = moment.strftime(TIMESTAMP)

        return wrapped

    Runner.setup_env = with_own_timestamp(Runner.setup_env)
    BaseStrategy._setup_env = with_own_timestamp(BaseStrategy._setup_env)


@pytest.fixture(autouse=True, scope='session')
def configs_without_a_layout() -> None:
    """MMEngine lays out the text of a config five times a run; that takes two seconds, longer than most runs here."""
    yapf_api.FormatCode = lambda text, **_: (text, True)


@pytest.fixture
def amp_on_cpu(monkeypatch):
    """MMEngine's AMP wrapper asks for a GPU; its code is the same without one."""
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    if hasattr(torch.amp, 'GradScaler'):
        monkeypatch.setattr(amp_optimizer_wrapper, 'GradScaler', functools.partial(torch.amp.GradScaler, 'cpu'))
