"""Context managers around calls into other libraries."""

import contextlib
import io
import warnings
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def named(what: str) -> Iterator[None]:
    """Raise every error of a library as a ValueError that begins with the step that failed."""
    try:
        yield
    except Exception as error:
        raise ValueError(f'{what}: {type(error).__name__}: {error}') from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop the output and the warnings of the libraries."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter('ignore')
        yield


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Let torch.hub load files from its cache, and refuse downloads with a FileNotFoundError."""

    def refuse(url: str, *_, **__) -> None:
        raise FileNotFoundError(f'not in {torch.hub.get_dir()}/checkpoints')

    download, torch.hub.download_url_to_file = torch.hub.download_url_to_file, refuse
    try:
        yield
    finally:
        torch.hub.download_url_to_file = download
