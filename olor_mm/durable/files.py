"""Checkpoint files that are whole: written durably, marked with their SHA-256, checked by it."""

import hashlib
import os
import shutil
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

from mmengine.fileio import LocalBackend, register_backend

BACKEND = 'olor_mm.durable'
MARK = b'olor_mm sha256 '
MARK_SIZE = len(MARK) + 64


def write_durably(path: str | os.PathLike, *parts: bytes | memoryview) -> None:
    """Write a file so that it is the old one or the new one at any moment, even at an error or a power cut."""
    path = Path(path)
    aside = path.with_name(f'.{path.name}.part')
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(aside, 'wb') as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)  # the new name is an entry in the folder
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def fault(file: BinaryIO) -> str | None:
    """What is wrong with the bytes of a checkpoint file; None if its checksums are right, or it has none."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return 'it is empty'
    left = max(0, size - MARK_SIZE)
    file.seek(left)
    end = file.read()
    file.seek(0)
    if end.startswith(MARK):
        digest = hashlib.sha256()
        while block := file.read(min(1 << 22, left)):
            digest.update(block)
            left -= len(block)
        same = end.removeprefix(MARK) == digest.hexdigest().encode()
        return None if same else 'its SHA-256 differs from the one it was saved with'
    if file.read(4) != b'PK\x03\x04':
        return None  # saved by torch before 1.6, without checksums; or not a checkpoint
    try:
        with zipfile.ZipFile(file) as entries:
            spoilt = entries.testzip() or ('the last bytes' if entries.comment else None)
            return spoilt and f'its checksum is wrong in {spoilt}'
    except Exception as error:  # zipfile raises errors of many types for damaged headers
        return f'it is cut off or overwritten ({error})'


@register_backend(BACKEND)
class DurableBackend(LocalBackend):
    """Local files, written durably and marked with their SHA-256. Removal waits for :meth:`clean_up`."""

    def __init__(self):
        self.outdated: set[str] = set()

    def put(self, obj: bytes, filepath: str | os.PathLike) -> None:
        # The mark is the comment of the zip file, which torch ignores. Checksums of the format leave out its headers.
        body = memoryview(obj)[:-2]  # the last two bytes are the length of the comment
        length = struct.pack('<H', MARK_SIZE)
        digest = hashlib.sha256(body)
        digest.update(length)
        write_durably(filepath, body, length + MARK + digest.hexdigest().encode())

    def remove(self, filepath: str | os.PathLike) -> None:
        self.outdated.add(os.path.abspath(filepath))

    rmtree = remove

    def clean_up(self, *keep: str | None) -> None:
        """Remove what is outdated, except these files."""
        outdated, self.outdated = self.outdated, set()
        for path in outdated - {os.path.abspath(path) for path in keep if path}:
            if os.path.isdir(path):
                shutil.rmtree(path)
            else:
                Path(path).unlink(missing_ok=True)
