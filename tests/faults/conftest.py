"""Fixtures for trainings that are cut off and resumed."""

import os
import signal
from pathlib import Path

import pytest
from runs import trained


@pytest.fixture(scope='session')
def run_dir(data, tmp_path_factory) -> Path:
    """Two epochs of two iterations; not to be changed."""
    folder = tmp_path_factory.mktemp('run')
    trained(folder, data)
    return folder


@pytest.fixture
def copy_of_run(run_dir, tmp_path) -> Path:
    for number, name in enumerate(('epoch_1.pth', 'epoch_2.pth')):
        (tmp_path / name).write_bytes((run_dir / name).read_bytes())
        os.utime(tmp_path / name, (number, number))
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_2.pth'))
    return tmp_path


@pytest.fixture
def own_sigterm():
    """Take back the handler that a run leaves when SIGTERM ends it."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
