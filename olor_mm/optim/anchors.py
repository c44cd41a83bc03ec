"""Where anchors lie: beside their parameters, in another dtype, in host memory, or in the checkpoint file itself."""

import ctypes
import hashlib
import mmap
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache

import torch
from torch import Tensor
from torch.nn import Parameter


def check_anchor_options(group: dict, where: str) -> dict:
    """The options ``anchor_dtype``, ``anchor_device`` and ``anchor_file`` of a group as plain strings, checked.

    Raises:
        ValueError: The message names the key, its value and what would be right.
    """
    dtype, device, file = group['anchor_dtype'], group['anchor_device'], group['anchor_file']
    if dtype is not None:
        known = dtype if isinstance(dtype, torch.dtype) else getattr(torch, str(dtype).removeprefix('torch.'), None)
        if not isinstance(known, torch.dtype) or not known.is_floating_point:
            raise ValueError(
                f"{where}: anchor_dtype={dtype!r} is no floating dtype of torch; take e.g. 'bfloat16', or None for "
                'that of the parameters'
            )
        dtype = str(known).removeprefix('torch.')
    if device is not None:
        try:
            device = str(torch.device(device))
            torch.ones(1, device=device).item()  # which 'meta' has not
        except Exception as error:  # of many kinds, and AssertionError by builds of torch without CUDA
            raise ValueError(
                f"{where}: anchor_device={device!r} is no device of torch here; take 'cpu' to keep the anchors of GPU "
                'parameters in host memory, or None for where the parameters are'
            ) from error
    files = [] if file is None else [file] if isinstance(file, (str, os.PathLike)) else file
    if not isinstance(files, (list, tuple)) or not all(isinstance(f, (str, os.PathLike)) for f in files):
        raise ValueError(f'{where}: anchor_file={file!r} is no path and no list of paths; give that of a checkpoint')
    for path in files:
        if not os.path.isfile(path):
            raise ValueError(
                f'{where}: anchor_file={os.fspath(path)!r} is not a file here; give the local path of the checkpoint '
                'that the pre-trained weights are loaded from'
            )
    if files and dtype is not None:
        raise ValueError(
            f'{where}: anchor_dtype={dtype!r} has no meaning with anchor_file={file!r}: anchors in a file are used in '
            'the dtype they have there; leave one of the two out'
        )
    return dict(anchor_dtype=dtype, anchor_device=device, anchor_file=[os.path.abspath(f) for f in files] or None)


def make_anchor(p: Parameter, group: dict) -> Tensor:
    """A copy of a parameter, of its shape, as the options of its group want it."""
    dtype = p.dtype if group['anchor_dtype'] is None else getattr(torch, group['anchor_dtype'])
    anchor = p.detach().to(dtype)
    if anchor.data_ptr() == p.data_ptr():
        anchor = anchor.clone(memory_format=torch.preserve_format)
    return place_anchor(anchor, p, group)


def place_anchor(anchor: Tensor, p: Parameter, group: dict) -> Tensor:
    """The anchor on the device that its group wants; in pinned memory where a GPU will fetch it from there."""
    anchor = anchor.to(group['anchor_device'] or p.device)
    fetched_by_gpu = anchor.device.type == 'cpu' and p.device.type == 'cuda'
    return anchor.pin_memory() if fetched_by_gpu else anchor


class AnchorFiles:
    """Checkpoint files that serve as anchors, memory-mapped.

    Attributes:
        entries (dict[Parameter, dict]): Where the anchor of a parameter stands: ``file``, its ``sha256`` and ``key``.
    """

    def __init__(self):
        self.entries: dict[Parameter, dict] = {}
        self._tensors: dict[str, dict[str, Tensor]] = {}
        self._mapped: set[int] = set()  # addresses of those that really are in a file

    def open_all(self, paths: Iterable[str]) -> None:
        """Memory-map files.

        Raises:
            ValueError: If one is not of plain tensors.
        """
        for path in paths:
            if os.path.isfile(path):  # one of a resumed state that is gone is told of with its anchors
                self._open(path)

    def find(self, p: Parameter, group: dict) -> Tensor | None:
        """The tensor in the files of its group that has the value of a parameter, whatever its name there; or None."""
        for path in group['anchor_file'] or ():
            for key, value in self._open(path).items():
                if value.shape == p.shape and torch.equal(p.detach().cpu(), value.to(p.dtype)):
                    self.entries[p] = dict(file=path, sha256=_sha256(path), key=key)
                    return value
        return None

    def reopen(self, p: Parameter, entry: dict, group: dict) -> Tensor:
        """The tensor that an entry names, out of the files of the group or the one of the entry.

        Raises:
            ValueError: If no such file is there, or it has been changed.
        """
        paths = [*(group['anchor_file'] or ()), entry['file']]
        for path in paths:
            if os.path.isfile(path) and _sha256(path) == entry['sha256']:
                self.entries[p] = {**entry, 'file': path}
                return self._open(path)[entry['key']]
        what = 'has been changed since: its SHA-256 is another' if os.path.isfile(entry['file']) else 'is not there'
        raise ValueError(
            f'the optimizer state has its anchors in the file {entry["file"]!r} (SHA-256 {entry["sha256"]}), and that '
            f'{what}. Put the file back, or name a copy of it by anchor_file; here it is {group["anchor_file"]!r}.'
        )

    def release(self, anchors: Iterable[Tensor]) -> None:
        """Let go of the memory that reading mapped anchors took; the system's file cache keeps what it has room for."""
        for anchor in anchors:
            if anchor.data_ptr() in self._mapped:  # of any other memory, this would destroy what is in it
                start = anchor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
                length = anchor.data_ptr() + anchor.numel() * anchor.element_size() - start
                _libc().madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)

    def _open(self, path: str) -> dict[str, Tensor]:
        if path not in self._tensors:
            self._tensors[path] = dict(_flat(_read(path)))
            self._mapped |= _addresses_in_file(self._tensors[path].values(), path)
        return self._tensors[path]


def missing_message(missing: int, total: int, files: Iterable[str]) -> str:
    """Tell how many anchors could not be taken from a file."""
    why = 'it is another checkpoint than the one that was loaded' if missing == total else 'resized or converted ones'
    return (
        f'anchor_file={list(files)}: {missing} of {total} pre-trained parameters have a value that is not in there '
        f'({why}); their anchors are kept in memory.'
    )


def fetched(batches: list[tuple], files: AnchorFiles) -> Iterator[tuple]:
    """Batches of (w, parameters, anchors) with every anchor on the device and in the dtype of its parameter.

    What lies elsewhere comes one by one, the next under way while the last is used. Shards of a ``DTensor`` come as
    the local tensors they are.
    """
    elsewhere = []
    for weight, params, anchors in batches:
        params, anchors = _local(params), _local(anchors)
        near = [a.device == p.device and a.dtype == p.dtype for p, a in zip(params, anchors)]
        if not all(near):
            elsewhere += [(weight, p, a) for p, a, is_near in zip(params, anchors, near) if not is_near]
            params, anchors = ([t for t, is_near in zip(ts, near) if is_near] for ts in (params, anchors))
        if params:
            yield weight, params, anchors
    following = None
    for weight, p, anchor in elsewhere:
        current, following = following, (weight, p, _start_copy(anchor, p))
        if current is not None:
            yield current[0], [current[1]], [_finish_copy(current[2], current[1])]
    if following is not None:
        yield following[0], [following[1]], [_finish_copy(following[2], following[1])]
    if files.entries:
        files.release(anchor for _, _, anchors in batches for anchor in anchors)


def _local(tensors: list[Tensor]) -> list[Tensor]:
    return [t.to_local() if hasattr(t, 'to_local') else t for t in tensors]


def _start_copy(anchor: Tensor, p: Tensor) -> Tensor:
    if p.device.type == 'cpu' or anchor.device == p.device:
        return anchor.to(p.device, p.dtype)
    with getattr(torch, p.device.type).stream(_stream(p.device)):
        return anchor.to(p.device, non_blocking=True).to(p.dtype)


def _finish_copy(copy: Tensor, p: Tensor) -> Tensor:
    if p.device.type != 'cpu':
        current = getattr(torch, p.device.type).current_stream(p.device)
        current.wait_stream(_stream(p.device))
        copy.record_stream(current)
    return copy


@cache
def _stream(device: torch.device):
    return getattr(torch, device.type).Stream(device)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


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
            f'anchor_file={path!r} cannot be memory-mapped as plain tensors ({error}). Save the weights alone in '
            "today's format, torch.save(state_dict, path), or as safetensors."
        ) from error


def _addresses_in_file(tensors: Iterable[Tensor], path: str) -> set[int]:
    if sys.platform != 'linux':
        return set()
    with open('/proc/self/maps') as lines:
        maps = [line.split(maxsplit=5) for line in lines]
    here = [fields[0].split('-') for fields in maps if len(fields) == 6 and fields[5].strip() == os.path.realpath(path)]
    spans = [range(int(start, 16), int(end, 16)) for start, end in here]
    return {t.data_ptr() for t in tensors if any(t.data_ptr() in span for span in spans)}


def _flat(content, prefix: str = '') -> Iterator[tuple[str, Tensor]]:
    for key, value in content.items():
        if isinstance(value, Tensor):
            yield f'{prefix}{key}', value
        elif isinstance(value, Mapping):
            yield from _flat(value, f'{prefix}{key}/')
