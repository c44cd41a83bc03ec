"""Context managers around calls into other libraries."""

import io
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stderr, redirect_stdout
from unittest.mock import patch
from warnings import catch_warnings, simplefilter

import torch


@contextmanager
def named(what: str) -> Iterator[None]:
    """Raise every error of a library as a ValueError that begins with the step that failed."""
    try:
        yield
    except Exception as error:
        raise ValueError(f'{what}: {type(error).__name__}: {error}') from error


@contextmanager
def quiet() -> Iterator[None]:
    """Drop the output and the warnings of the libraries."""
    with catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        simplefilter('ignore')
        yield


def offline() -> AbstractContextManager:
    """Let torch.hub load files from its cache, and refuse downloads with a FileNotFoundError."""
    error = FileNotFoundError(f'not in {torch.hub.get_dir()}/checkpoints')
    return patch.object(torch.hub, 'download_url_to_file', side_effect=error)
