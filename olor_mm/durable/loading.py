"""Checkpoints as plain data: checked for damage, and opened so that no code in them runs."""

import io
import os
import re
from typing import Any

import torch

from .files import fault
from .plain import load_plain, torch_load

TRUST = 'OLOR_TRUST_CHECKPOINTS'


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file, what is wrong, and what to do."""


def load(f, map_location=None, pickle_module=None, *, weights_only=None, mmap=None, **kwargs) -> Any:
    """``torch.load`` for checkpoints of any origin: damage is found, and no code in the file runs.

    It reads tensors, plain values, numpy arrays of numbers or text, MMEngine's ``HistoryBuffer``, and safetensors.
    With OLOR_TRUST_CHECKPOINTS=1 in the environment it reads all that torch reads, if the file is not damaged.

    Args:
        f (str, PathLike or BinaryIO): The checkpoint.
        map_location: As for ``torch.load``; so is ``mmap``. ``pickle_module`` and ``weights_only`` apply only to
            trusted checkpoints.

    Raises:
        CheckpointError: If the file is damaged, is not a checkpoint, or has something else in it.
        FileNotFoundError: If there is no such file.
    """
    is_path = isinstance(f, (str, os.PathLike))
    name = repr(os.fspath(f)) if is_path else 'a checkpoint'
    if is_path and os.fspath(f).endswith('.safetensors'):
        from safetensors.torch import load_file

        try:
            return load_file(f, device=str(map_location or 'cpu'))
        except Exception as error:
            raise CheckpointError(_damaged(name, str(error))) from error
    with open(f, 'rb') if is_path else io.BytesIO(f.read()) as file:
        what = fault(file)
        if what is not None:
            raise CheckpointError(_damaged(name, what))
        file.seek(0)
        source = os.fspath(f) if is_path and mmap else file
        if os.environ.get(TRUST) == '1':
            weights_only = bool(weights_only)
            return torch_load(source, map_location, pickle_module, weights_only=weights_only, mmap=mmap, **kwargs)
        try:
            return load_plain(source, map_location, mmap)
        except Exception as error:
            raise CheckpointError(_refused(name, str(error) or repr(error))) from None  # torch suggests unsafe ways


def load_weights(path: str | os.PathLike) -> tuple[dict[str, torch.Tensor], dict]:
    """The weights in a checkpoint, bare or under ``state_dict``, and its whole content.

    Raises:
        CheckpointError: If there is no such file, if :func:`load` refuses it, or if it has no weights.
    """
    name = repr(os.fspath(path))
    if not os.path.isfile(path):
        raise CheckpointError(f'{name} is not a file; give the path of a checkpoint')
    content = load(path, 'cpu')
    weights = content.get('state_dict', content) if isinstance(content, dict) else content
    if not isinstance(weights, dict) or not any(isinstance(value, torch.Tensor) for value in weights.values()):
        raise CheckpointError(f'{name} has no weights, but a {type(weights).__name__}; give a file with a state dict')
    return weights, content


def save_weights(content: dict, path: str | os.PathLike, *sources: str | os.PathLike) -> None:
    """``torch.save`` for what a tool makes from these source files; missing folders are created.

    Raises:
        CheckpointError: If the file cannot be written, or is one of the sources.
    """
    if os.path.realpath(path) in map(os.path.realpath, sources):
        raise CheckpointError(f'{os.fspath(path)!r} was read and would be overwritten; give another file to write')
    try:
        os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
        with open(path, 'wb') as file:
            torch.save(content, file)
    except OSError as error:
        raise CheckpointError(f'{os.fspath(path)!r} cannot be written ({error}); give another file') from error


def guard_loading(trust: bool = False) -> None:
    """Make this process open all checkpoints by :func:`load`, those that MMEngine reads too.

    ``torch.load`` is replaced, since MMEngine calls it in many places, with ``weights_only=False``.

    Args:
        trust (bool): Read them as torch does, here and in processes started from here.
    """
    if trust:
        os.environ[TRUST] = '1'
    torch.load = load


def _damaged(name: str, what: str) -> str:
    return (
        f'{name} is damaged, or not a checkpoint: {what.rstrip(".")}. Take another checkpoint, or get this one again; '
        '--resume without a path takes the newest good one in the work directory'
    )


def _refused(name: str, error: str) -> str:
    named = re.search(r'GLOBAL ([\w.]*\w)|[Cc]an only .* got (.*)|(TorchScript)|call (.*)', error)
    if named is None:
        return _damaged(name, error.rpartition('error: ')[2].strip().partition('\n')[0])
    return (
        f'{name} has more in it than tensors and plain values, and was not opened, since it could run any code: it '
        f'names {next(filter(None, named.groups()))}. If you trust its origin, use --trust-checkpoints or {TRUST}=1'
    )
