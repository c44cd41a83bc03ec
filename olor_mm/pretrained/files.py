"""Checkpoint files, read without running anything that is in them."""

import os
import pickle
from types import SimpleNamespace

import torch

# what torch.save puts into a file to rebuild a tensor; storages are found by torch itself
REBUILDERS = {
    ('collections', 'OrderedDict'),
    ('torch', 'Size'),
    ('torch', 'device'),
    ('torch._utils', '_rebuild_parameter'),
    ('torch._utils', '_rebuild_tensor'),
    ('torch._utils', '_rebuild_tensor_v2'),
}


class Unread:
    """Stands where a file has an object of another class, as of the log buffers that MMEngine saves."""

    def __new__(cls, *_, **__):
        return object.__new__(cls)

    def __init__(self, *_, **__):
        pass

    def __call__(self, *_, **__):
        return Unread()

    def __getattr__(self, _):
        return Unread()

    def __setitem__(self, *_):
        pass


class TensorUnpickler(pickle.Unpickler):
    """Builds tensors, containers and plain values; every other object becomes :class:`Unread`, its code not called."""

    def find_class(self, module: str, name: str):
        is_dtype = module == 'torch' and isinstance(getattr(torch, name, None), torch.dtype)
        return super().find_class(module, name) if is_dtype or (module, name) in REBUILDERS else Unread


def read_checkpoint(file: str | os.PathLike) -> dict:
    """What ``torch.save`` or safetensors has written, on CPU; nothing in it is executed.

    Args:
        file (str or PathLike): A checkpoint of MMEngine, a plain state dict, or a '.safetensors' file.

    Raises:
        ValueError: If it is not a file, or not one of a dict.
    """
    file = os.fspath(file)
    if not os.path.isfile(file):
        raise ValueError(f'{file!r} is not a file')
    try:
        if file.endswith('.safetensors'):
            from safetensors.torch import load_file

            return load_file(file)
        try:
            content = torch.load(file, map_location='cpu', weights_only=True)
        except pickle.UnpicklingError:  # more than weights is in it, as in every checkpoint of a training run
            reader = SimpleNamespace(
                Unpickler=TensorUnpickler, load=lambda f, **options: TensorUnpickler(f, **options).load(), __name__=''
            )
            content = torch.load(file, map_location='cpu', weights_only=False, pickle_module=reader)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f'{file!r} cannot be read as a checkpoint: {str(error).splitlines()[0]}') from error
    if not isinstance(content, dict):
        raise ValueError(f'{file!r} holds a {type(content).__name__} and no dict of weights')
    return content


def plain(value):
    """A value without what was not read: entries of dicts that are or hold such an object are left out."""
    if isinstance(value, dict):
        kept = {key: plain(item) for key, item in value.items() if not isinstance(key, Unread)}
        return {key: item for key, item in kept.items() if not isinstance(item, Unread)}
    if isinstance(value, (list, tuple, set)):
        items = [plain(item) for item in value]
        return Unread() if any(isinstance(item, Unread) for item in items) else type(value)(items)
    return value
