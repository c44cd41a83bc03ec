"""Where anchors are kept: beside their parameters, in another dtype, in host memory, or in the checkpoint file."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from functools import cache

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils.weak import WeakIdKeyDictionary

NO_ANCHOR = float('nan')  # in place of elements that have none
_new: MutableMapping[Parameter, Tensor] = WeakIdKeyDictionary()


def check_anchor_options(group: dict, where: str) -> dict:
    """The options ``anchor_dtype``, ``anchor_device`` and ``anchor_file`` of a group as plain strings, checked."""
    dtype, device, file = group['anchor_dtype'], group['anchor_device'], group['anchor_file']
    if dtype is not None:
        known = dtype if isinstance(dtype, torch.dtype) else getattr(torch, str(dtype).removeprefix('torch.'), None)
        if not isinstance(known, torch.dtype) or not known.is_floating_point:
            raise ValueError(f"{where}: anchor_dtype={dtype!r} is no floating dtype of torch; take e.g. 'bfloat16'")
        dtype = str(known).removeprefix('torch.')
    if device is not None:
        try:
            device = str(torch.device(device))
            torch.ones(1, device=device).item()  # which 'meta' does not have
        except Exception as error:  # of many kinds, and AssertionError by builds of torch without CUDA
            raise ValueError(f"{where}: anchor_device={device!r} is no device here; take 'cpu' or None") from error
    files = [] if file is None else [file] if isinstance(file, (str, os.PathLike)) else file
    is_list = isinstance(files, (list, tuple)) and all(isinstance(path, (str, os.PathLike)) for path in files)
    missing = [os.fspath(path) for path in files if not os.path.isfile(path)] if is_list else [file]
    if missing:
        raise ValueError(
            f'{where}: anchor_file={missing[0]!r} is not a file here; give the path of the checkpoint that the '
            'pre-trained weights are loaded from, or a list of paths'
        )
    if files and dtype is not None:
        raise ValueError(f'{where}: anchor_dtype={dtype!r} has no effect with anchor_file={file!r}; leave one out')
    return dict(anchor_dtype=dtype, anchor_device=device, anchor_file=[os.path.abspath(path) for path in files] or None)


def mark_new(p: Parameter, is_new: Tensor) -> None:
    """Say which elements of a pre-trained parameter were not pre-trained, e.g. a head's rows of new classes.

    Its anchor, captured later, holds NaN there: such an element is free, and no part of a norm or of drift.

    Args:
        p (nn.Parameter): Of any shape; not a shard of one.
        is_new (torch.Tensor): bool, of the shape of ``p``.

    Raises:
        ValueError: If ``is_new`` is of another dtype or shape, or ``p`` is sharded.
    """
    if is_new.dtype != torch.bool or is_new.shape != p.shape:
        given = f'{str(is_new.dtype).removeprefix("torch.")} of shape {tuple(is_new.shape)}'
        raise ValueError(f'is_new is {given}; give torch.bool of the shape of the parameter, {tuple(p.shape)}')
    if hasattr(p, 'to_local') or getattr(p, '_fsdp_flattened', False):
        raise ValueError('is_new is of a whole parameter, and FSDP has made shards of it: take DDP or ZeRO')
    _new[p] = is_new


def new_elements(p: Parameter) -> Tensor | None:
    """What ``mark_new`` was told of a parameter; None if all of it counts as pre-trained."""
    return _new.get(p)


def make_anchor(p: Parameter, group: dict) -> Tensor:
    """A copy of a parameter, of its shape, as the options of its group want it."""
    dtype = p.dtype if group['anchor_dtype'] is None else getattr(torch, group['anchor_dtype'])
    anchor = p.detach().to(dtype)
    if anchor.data_ptr() == p.data_ptr():
        anchor = anchor.clone(memory_format=torch.preserve_format)
    is_new = new_elements(p)
    return place_anchor(anchor if is_new is None else anchor.masked_fill_(is_new.to(p.device), NO_ANCHOR), p, group)


def place_anchor(anchor: Tensor, p: Parameter, group: dict) -> Tensor:
    """The anchor on the device that its group wants; in pinned memory where a GPU will fetch it from there."""
    anchor = anchor.to(group['anchor_device'] or p.device)
    fetched_by_gpu = anchor.device.type == 'cpu' and p.device.type == 'cuda'
    return anchor.pin_memory() if fetched_by_gpu else anchor


def fetched(batches: Iterable[tuple]) -> Iterator[tuple]:
    """Batches of (w or a list of w, parameters, anchors), every anchor on the device and in the dtype of its parameter.

    Anchors from elsewhere come one by one, so that one copy at a time takes memory. Shards of a ``DTensor`` come as
    local tensors.
    """
    for weight, params, anchors in batches:
        weights = weight if isinstance(weight, list) else [weight] * len(params)
        rows = list(zip(weights, local(params), local(anchors)))
        near = [(w, p, a) for w, p, a in rows if a.device == p.device and a.dtype == p.dtype]
        if near:
            weights, here, beside = map(list, zip(*near))
            yield weights if isinstance(weight, list) else weight, here, beside
        for w, p, a in rows:
            if a.device != p.device or a.dtype != p.dtype:
                yield [w] if isinstance(weight, list) else w, [p], [a.to(p.device, p.dtype, non_blocking=True)]


def local(tensors: list[Tensor]) -> list[Tensor]:
    """Of a ``DTensor``, the part that this process has."""
    return [t.to_local() if hasattr(t, 'to_local') else t for t in tensors]


class AnchorFiles:
    """Checkpoint files that serve as anchors, memory-mapped.

    Attributes:
        entries (dict[Parameter, dict]): The place of a parameter's anchor: ``file``, its ``sha256``, and ``key``.
    """

    def __init__(self):
        self.entries: dict[Parameter, dict] = {}
        self._tensors: dict[str, dict[str, Tensor]] = {}

    def find(self, p: Parameter, group: dict) -> Tensor | None:
        """The tensor in the files of its group that has the value of a parameter, whatever its name there; or None."""
        for path in group['anchor_file'] or ():
            for key, value in self.open(path).items():
                if value.shape == p.shape and torch.equal(p.detach().cpu(), value.to(p.dtype)):
                    self.entries[p] = dict(file=path, sha256=_sha256(path), key=key)
                    return value
        return None

    def reopen(self, p: Parameter, entry: dict, group: dict) -> Tensor:
        """The tensor that an entry names; a ValueError if its file is not there or has been changed."""
        for path in (*(group['anchor_file'] or ()), entry['file']):
            if os.path.isfile(path) and _sha256(path) == entry['sha256']:
                self.entries[p] = {**entry, 'file': path}
                return self.open(path)[entry['key']]
        what = 'has been changed since' if os.path.isfile(entry['file']) else 'is not there'
        raise ValueError(
            f'the anchors of the optimizer state are in the file {entry["file"]!r} (SHA-256 {entry["sha256"]}), which '
            f'{what}. Put it back, or give a copy as anchor_file; here anchor_file={group["anchor_file"]!r}'
        )

    def open(self, path: str) -> dict[str, Tensor]:
        """The tensors in a file, memory-mapped; a ValueError if they are not plain ones."""
        if path not in self._tensors:
            self._tensors[path] = dict(_flat(_read(path)))
        return self._tensors[path]


def _sha256(path: str) -> str:
    status = os.stat(path)
    return _digest(path, status.st_mtime_ns, status.st_size, status.st_ino)


@cache
def _digest(path: str, *version) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _read(path: str):
    try:
        if path.endswith('.safetensors'):
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location='cpu', mmap=True, weights_only=True)
        if not isinstance(content, Mapping):
            raise TypeError(f'it has a {type(content).__name__} in it, and no dict')
        return content
    except Exception as error:
        raise ValueError(
            f'anchor_file={path!r} cannot be memory-mapped as plain tensors ({error}). Save the weights alone, by '
            'torch.save(state_dict, path) or as safetensors'
        ) from error


def _flat(content: Mapping, prefix: str = '') -> Iterator[tuple[str, Tensor]]:
    for key, value in content.items():
        if isinstance(value, Tensor):
            yield f'{prefix}{key}', value
        elif isinstance(value, Mapping):
            yield from _flat(value, f'{prefix}{key}/')
