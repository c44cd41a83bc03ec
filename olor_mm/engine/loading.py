"""Checkpoints as plain data: whether a file is whole, and opened so that nothing in it is run."""

import hashlib
import io
import os
import pickle
import re
import struct
import threading
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from contextlib import contextmanager
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

TRUST = 'OLOR_TRUST_CHECKPOINTS'
MARK = b'olor_mm sha256 '
MARK_SIZE = len(MARK) + 64
BLOCK = 1 << 22
torch_load = torch.load
LIST_IN_USE = threading.Lock()  # torch has one list for all threads


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file, what is wrong, and what to do."""


class _DType:
    """What ``numpy.dtype`` is replaced by: the real one takes any state that a file gives it, sizes and flags too."""

    def __init__(self, name, *_):
        self.value = np.dtype(name)
        if self.value.kind not in 'biufcSU' or self.value.fields or self.value.subdtype:
            raise pickle.UnpicklingError(f'GLOBAL numpy.dtype of {name!r}, which is not one of plain numbers or text')

    def __setstate__(self, state):
        self.value = self.value.newbyteorder(state[1])


class _Array:
    """What ``numpy.ndarray`` is replaced by: an array is made of bytes alone."""

    value = None

    def __init__(self, *_):
        pass

    def __setstate__(self, state):
        _, shape, dtype, by_column, data = state
        self.value = np.frombuffer(data, dtype.value).reshape(shape, order='F' if by_column else 'C').copy()


class _Buffer:
    """What ``HistoryBuffer`` is replaced by: the real one takes functions from the file."""

    def __setstate__(self, state):
        histories = (np.asarray(_plain(state[key])) for key in ('_log_history', '_count_history'))
        self.value = HistoryBuffer(*histories, max_length=state['max_length'])


def _scalar(dtype: _DType, data: bytes):
    return np.frombuffer(data, dtype.value)[0]


def _attribute(owner, name: str):
    """What ``getattr`` is replaced by: one class within another. HistoryBuffer saves its methods too; it has them."""
    return ShardedTensor.ProcessGroupState if (owner, name) == (ShardedTensor, 'ProcessGroupState') else None


# what FSDP saves of sharded weights: records of sizes and places, around plain tensors
SHARDS = (
    ShardedTensor,
    ShardedTensor.ProcessGroupState,
    Shard,
    ShardMetadata,
    metadata.ShardedTensorMetadata,
    metadata.TensorProperties,
    metadata.MEM_FORMAT_ENCODING,
    ChunkShardingSpec,
    EnumerableShardingSpec,
    _remote_device,
)
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


def _plain(content: Any) -> Any:
    """The content with the values of stand-ins in their place; dicts and lists are changed in place."""
    if isinstance(content, (_DType, _Array, _Buffer)):
        return content.value
    if isinstance(content, dict):
        content.update({key: _plain(value) for key, value in content.items()})
    elif isinstance(content, list):
        content[:] = map(_plain, content)
    elif type(content) is tuple:
        return tuple(map(_plain, content))
    return content


class RestrictedPickle:
    """A ``pickle_module`` for versions of torch whose ``weights_only`` cannot be told what else to let through."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str):
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
            allowed = {**weights_only_unpickler._get_allowed_globals(), '_codecs.encode': _encode, **STAND_INS}
            if f'{module}.{name}' not in allowed:
                raise pickle.UnpicklingError(f'GLOBAL {module}.{name}')
            return allowed[f'{module}.{name}']

    @classmethod
    def load(cls, file: BinaryIO, **kwargs):
        return cls.Unpickler(file, **kwargs).load()


def _encode(text: str, encoding: str) -> bytes:
    return text.encode('latin1')  # as bytes are pickled; a name of a codec is not to be looked up


@contextmanager
def _stand_ins_only() -> Iterator[None]:
    """Let the stand-ins through and nothing else: MMEngine's own list has the real ``getattr`` and ``numpy.dtype``."""
    with LIST_IN_USE:
        before = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals([(stand_in, name) for name, stand_in in STAND_INS.items()])
        try:
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(before)


def marked(content: bytes) -> tuple[memoryview, bytes]:
    """What ``torch.save`` wrote, in two parts, the second with a SHA-256 of the first: the comment of a zip file.

    Any torch reads such a file. Its own check sums cover what is in a zip file, not the headers, and torch does not
    look at them.
    """
    body = memoryview(content)[:-2]  # these two say how long the comment is
    length = struct.pack('<H', MARK_SIZE)
    digest = hashlib.sha256(body)
    digest.update(length)
    return body, length + MARK + digest.hexdigest().encode()


def _fault(file: BinaryIO) -> str | None:
    """What is wrong with the bytes of a file, as far as they tell by themselves."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return 'it is empty'
    file.seek(max(0, size - MARK_SIZE))
    end = file.read()
    file.seek(0)
    if end.startswith(MARK):
        digest, left = hashlib.sha256(), size - MARK_SIZE
        while left > 0:
            block = file.read(min(BLOCK, left))
            digest.update(block)
            left -= len(block)
        same = end[len(MARK) :] == digest.hexdigest().encode()
        return None if same else 'its SHA-256 is another than it was saved with'
    if file.read(4) != b'PK\x03\x04':
        return None  # of torch before 1.6, without any check sum; or no checkpoint at all
    try:
        with zipfile.ZipFile(file) as entries:
            spoilt = entries.testzip()
            if spoilt is not None or entries.comment:
                return f'its check sum is wrong in {spoilt or "the last bytes"}'
    except Exception as error:  # whatever zipfile makes of damaged headers
        return f'it is cut off or overwritten ({error})'
    return None


def load(f, map_location=None, pickle_module=None, *, weights_only=None, mmap=None, **kwargs) -> Any:
    """``torch.load`` for checkpoints of anyone: damaged ones are found, and nothing in them is run.

    Tensors, plain values, numpy arrays of numbers or text and MMEngine's ``HistoryBuffer`` are read, and safetensors.
    With OLOR_TRUST_CHECKPOINTS=1 in the environment, anything is, as by torch, if the file is not damaged.

    Args:
        f (str, PathLike or BinaryIO): The checkpoint.
        map_location: As for ``torch.load``; so is ``mmap``. ``pickle_module`` and ``weights_only`` count only for
            trusted checkpoints.

    Raises:
        CheckpointError: If the file is damaged, is no checkpoint, or has something else in it.
        FileNotFoundError: If there is none.
    """
    is_path = isinstance(f, (str, os.PathLike))
    name = repr(os.fspath(f)) if is_path else 'a checkpoint'
    if is_path and os.fspath(f).endswith('.safetensors'):
        from safetensors.torch import load_file

        try:
            return load_file(f, device=str(map_location or 'cpu'))
        except Exception as error:
            raise CheckpointError(_damaged(name, str(error).rstrip('.'))) from error
    with open(f, 'rb') if is_path else io.BytesIO(f.read()) as file:
        fault = _fault(file)
        if fault is not None:
            raise CheckpointError(_damaged(name, fault))
        file.seek(0)
        source = os.fspath(f) if is_path and mmap else file
        if os.environ.get(TRUST) == '1':
            weights_only = bool(weights_only)
            return torch_load(source, map_location, pickle_module, weights_only=weights_only, mmap=mmap, **kwargs)
        try:
            return _plain(_load_plain(source, map_location, mmap))
        except Exception as error:
            # torch says at length what else could be done, and that is not all safe
            named = re.search(r'GLOBAL ([\w.]*\w)|[Cc]an only .* got (.*)|(TorchScript)|call (.*)', str(error))
            if named:
                raise CheckpointError(_refused(name, next(filter(None, named.groups())))) from None
            what = str(error).rpartition('error: ')[2].strip().partition('\n')[0].rstrip('.')
            raise CheckpointError(_damaged(name, what or repr(error))) from None


def load_weights(path: str | os.PathLike) -> tuple[dict[str, torch.Tensor], dict]:
    """The weights in a checkpoint, and all of it.

    Args:
        path (str or PathLike): A file with a state dict, bare or under ``state_dict``.

    Raises:
        CheckpointError: If there is no such file, or :func:`load` refuses it, or it has no weights in it.
    """
    name = repr(os.fspath(path))
    if not os.path.isfile(path):
        raise CheckpointError(f'{name} is not a file; give the path of a checkpoint')
    content = load(path, 'cpu')
    weights = content.get('state_dict', content) if isinstance(content, dict) else content
    if not isinstance(weights, dict) or not any(isinstance(value, torch.Tensor) for value in weights.values()):
        raise CheckpointError(
            f'{name} has no weights in it, but a {type(weights).__name__}; give a checkpoint with a state dict'
        )
    return weights, content


def save_weights(content: dict, path: str | os.PathLike, *sources: str | os.PathLike) -> None:
    """``torch.save`` for what a tool has made of these sources; the folder is made if need be.

    Raises:
        CheckpointError: If it cannot be written, or is one of the sources.
    """
    if os.path.realpath(path) in map(os.path.realpath, sources):
        raise CheckpointError(f'{os.fspath(path)!r} is what was read and would be lost; give another file to write')
    try:
        os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
        with open(path, 'wb') as file:
            torch.save(content, file)
    except OSError as error:
        raise CheckpointError(f'{os.fspath(path)!r} cannot be written ({error}); give another file') from error


def _load_plain(file, map_location, mmap) -> Any:
    if digit_version(torch.__version__) >= digit_version('2.6'):
        with _stand_ins_only():
            return torch_load(file, map_location, weights_only=True, mmap=mmap)
    return torch_load(file, map_location, RestrictedPickle, weights_only=False, mmap=mmap)


def _damaged(name: str, what: str) -> str:
    return (
        f'{name} is damaged, or no checkpoint: {what}. Take another checkpoint, or get this one again; '
        'tools/train.py --resume without a path takes the newest one in the work directory that is good'
    )


def _refused(name: str, what: str) -> str:
    return (
        f'{name} has more in it than tensors and plain values, and was not opened, since it could run any code here: '
        f'it names {what}. If you know where it is from and trust it, use --trust-checkpoints, or set {TRUST}=1'
    )


def guard_loading(trust: bool = False) -> None:
    """Make all of this process open checkpoints by :func:`load`: MMEngine opens those it finds unsafe all the same.

    Args:
        trust (bool): Open them by torch's own means, here and in processes started from here.
    """
    if trust:
        os.environ[TRUST] = '1'
    torch.load = load
