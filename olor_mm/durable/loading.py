"""Checkpoints as plain data: checked for damage, and opened with stand-ins, so that no code in them runs."""

import io
import os
import pickle
import re
import threading
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from types import SimpleNamespace
from typing import Any, BinaryIO

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version
from torch import _weights_only_unpickler as weights_only_unpickler
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor, metadata
from torch.distributed._shard.sharding_spec import ChunkShardingSpec, EnumerableShardingSpec
from torch.distributed.remote_device import _remote_device

from .files import fault

TRUST = 'OLOR_TRUST_CHECKPOINTS'
LIST_IN_USE = threading.Lock()  # torch has one list for all threads
torch_load = torch.load


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
            return torch_load(source, map_location, pickle_module, weights_only=bool(weights_only), mmap=mmap, **kwargs)
        try:
            return _load_plain(source, map_location, mmap)
        except Exception as error:
            raise CheckpointError(_refused(name, str(error) or repr(error))) from None  # torch suggests unsafe ways


def load_weights(path: str | os.PathLike) -> tuple[dict[str, torch.Tensor], dict]:
    """The weights in a checkpoint, bare or under ``state_dict``, and its whole content.

    Args:
        path (str or PathLike): The checkpoint; its tensors are loaded to the CPU.

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
    """``torch.save`` for what a tool makes from source files; missing folders are created.

    Args:
        content (dict): What to save.
        path (str or PathLike): Where to.
        *sources (str or PathLike): Files that it was made from, which stay.

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


class _DType:
    """In place of ``numpy.dtype``, which takes any state that a file gives it, sizes and flags too."""

    def __init__(self, name, *_):
        self.value = np.dtype(name)
        if self.value.kind not in 'biufcSU' or self.value.fields or self.value.subdtype:
            raise pickle.UnpicklingError(f'GLOBAL numpy.dtype of {name!r}, which is not one of plain numbers or text')

    def __setstate__(self, state):
        self.value = self.value.newbyteorder(state[1])


class _Array:
    """In place of ``numpy.ndarray``: an array is made from bytes alone."""

    def __init__(self, *_):
        self.value = None

    def __setstate__(self, state):
        _, shape, dtype, by_column, data = state
        self.value = np.frombuffer(data, dtype.value).reshape(shape, order='F' if by_column else 'C').copy()


class _Buffer:
    """In place of ``HistoryBuffer``, which takes functions from the file."""

    def __setstate__(self, state):
        histories = (np.asarray(_replaced(state[key])) for key in ('_log_history', '_count_history'))
        self.value = HistoryBuffer(*histories, max_length=state['max_length'])


def _scalar(dtype: _DType, data: bytes):
    return np.frombuffer(data, dtype.value)[0]


def _attribute(owner, name: str):
    """In place of ``getattr``: one class within another. HistoryBuffer saves its methods, and does not need them."""
    return ShardedTensor.ProcessGroupState if (owner, name) == (ShardedTensor, 'ProcessGroupState') else None


# FSDP saves a sharded weight as plain tensors in records of their sizes and places
SHARDS = {ShardedTensor, ShardedTensor.ProcessGroupState, Shard, ShardMetadata, _remote_device}
SHARDS |= {metadata.ShardedTensorMetadata, metadata.TensorProperties, metadata.MEM_FORMAT_ENCODING}
SHARDS |= {ChunkShardingSpec, EnumerableShardingSpec}
STAND_INS = {
    'builtins.getattr': _attribute,
    **{f'builtins.{plain.__name__}': plain for plain in (bytearray, complex, set, slice)},
    'mmengine.logging.history_buffer.HistoryBuffer': _Buffer,
    'numpy.dtype': _DType,
    'numpy.ndarray': _Array,
    **{f'{shard.__module__}.{shard.__qualname__}': shard for shard in SHARDS},
    **{f'numpy.{core}.multiarray._reconstruct': _Array for core in ('core', '_core')},
    **{f'numpy.{core}.multiarray.scalar': _scalar for core in ('core', '_core')},
}


def _replaced(content: Any) -> Any:
    """The content with the values of stand-ins in their place; dicts and lists are changed in place."""
    if isinstance(content, (_DType, _Array, _Buffer)):
        return content.value
    if isinstance(content, dict):
        content.update({key: _replaced(value) for key, value in content.items()})
    elif isinstance(content, list):
        content[:] = map(_replaced, content)
    elif type(content) is tuple:
        return tuple(map(_replaced, content))
    return content


class _Unpickler(pickle.Unpickler):
    """For versions of torch whose ``weights_only`` cannot be extended safely."""

    def find_class(self, module: str, name: str):
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        allowed = {**weights_only_unpickler._get_allowed_globals(), **STAND_INS}
        allowed['_codecs.encode'] = lambda text, _: text.encode('latin1')  # of bytes; no codec of the file is looked up
        if f'{module}.{name}' not in allowed:
            raise pickle.UnpicklingError(f'GLOBAL {module}.{name}')
        return allowed[f'{module}.{name}']


def _load_plain(file: str | BinaryIO, map_location, mmap: bool | None) -> Any:
    """``torch.load`` of tensors, plain values and what has a stand-in; errors of pickle name what has none."""
    if digit_version(torch.__version__) < digit_version('2.6'):
        restricted = SimpleNamespace(Unpickler=_Unpickler, load=lambda file, **how: _Unpickler(file, **how).load())
        restricted.__name__ = 'restricted'
        return _replaced(torch_load(file, map_location, restricted, weights_only=False, mmap=mmap))
    with LIST_IN_USE:
        before = torch.serialization.get_safe_globals()  # MMEngine adds the real `getattr` and `numpy.dtype`
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals([(stand_in, name) for name, stand_in in STAND_INS.items()])
        try:
            return _replaced(torch_load(file, map_location, weights_only=True, mmap=mmap))
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(before)
