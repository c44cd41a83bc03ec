"""Stand-ins for what MMEngine and FSDP save beside tensors, so that unpickling a checkpoint runs none of its code."""

import pickle
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

torch_load = torch.load
LIST_IN_USE = threading.Lock()  # torch has one list for all threads


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


def _encode(text: str, encoding: str) -> bytes:
    return text.encode('latin1')  # bytes are pickled with it; a codec that a file names is not looked up


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
        allowed = {**weights_only_unpickler._get_allowed_globals(), '_codecs.encode': _encode, **STAND_INS}
        if f'{module}.{name}' not in allowed:
            raise pickle.UnpicklingError(f'GLOBAL {module}.{name}')
        return allowed[f'{module}.{name}']


# a `pickle_module`
RESTRICTED_PICKLE = SimpleNamespace(
    __name__='restricted', Unpickler=_Unpickler, load=lambda file, **kwargs: _Unpickler(file, **kwargs).load()
)


def load_plain(file: str | BinaryIO, map_location, mmap: bool | None) -> Any:
    """``torch.load`` of tensors, plain values and what has a stand-in; errors of pickle name what has none."""
    if digit_version(torch.__version__) < digit_version('2.6'):
        return _replaced(torch_load(file, map_location, RESTRICTED_PICKLE, weights_only=False, mmap=mmap))
    with LIST_IN_USE:
        before = torch.serialization.get_safe_globals()  # MMEngine adds the real `getattr` and `numpy.dtype`
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals([(stand_in, name) for name, stand_in in STAND_INS.items()])
        try:
            return _replaced(torch_load(file, map_location, weights_only=True, mmap=mmap))
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(before)
