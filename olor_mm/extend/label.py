"""Runs the old model over images: in batches, over several processes, and on from where a killed run stopped."""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import barrier, get_rank, get_world_size
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Dataset

from ..classes.names import match_classes
from .predict import OldModel, Reader, Unusable

FAULT = 'fault'  # key of the record of an image that cannot be used
Record = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """An image to label."""

    name: str  # in the data set, once
    file: Path
    size: tuple[int, int] | None = None  # width and height as annotated
    mask: Path | None = None  # class numbers of its pixels

    def state(self) -> list:
        """What tells it from another image of that name."""
        files = [file for file in (self.file, self.mask) if file is not None and file.is_file()]
        return [self.name, *((file.stat().st_size, file.stat().st_mtime_ns) for file in files)]


@dataclass(frozen=True)
class Choice:
    """Which predictions of the old model become labels.

    Args:
        thresholds (Sequence[float]): By class of the old model: from this score on it is a label.
        ignored_from (float): Share of the threshold from which on it is an ignored region; 1 for none.
        only_old (bool): No labels for classes that the data annotates.
    """

    thresholds: Sequence[float]
    ignored_from: float = 0.6
    only_old: bool = False

    def masks_of(self, labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which predictions are labels, and which are ignored; ``labels`` and ``scores`` may have any shape."""
        thresholds = np.asarray(self.thresholds)[labels]
        kept = scores >= thresholds
        return kept, ~kept & (scores >= thresholds * self.ignored_from)


@dataclass
class Labelled:
    """What was added, by class of the old model."""

    added: Counter = field(default_factory=Counter)
    ignored: Counter = field(default_factory=Counter)
    overlapping: int = 0  # predictions that an annotation has in their place
    best: float = 0.0  # highest score there was


def joined_indices(old: Sequence[str], classes: Sequence[str], aliases: Mapping[str, str] | None = None) -> list[int]:
    """The index of each class among the :func:`~olor_mm.classes.names.joined_classes`."""
    added = count(len(old))
    return [next(added) if at is None else at for at in match_classes(old, classes, aliases)]


class Progressed:
    """Finished batches of images, beside the file that they are for; a run that is killed goes on from them.

    Every process appends lines to a file of its own, named after all that the results depend on. Lines of a run with
    another model, data or options are not read, and neither is a line that a killed process left unfinished.

    Args:
        folder (Path): Where the files are.
        what (str): Begins their names.
        depends_on: What the results depend on, as JSON.
    """

    def __init__(self, folder: Path, what: str, *depends_on):
        text = json.dumps(depends_on, skipkeys=True, default=lambda value: getattr(value, '__qualname__', str(value)))
        self._stem = f'{what}-{hashlib.sha256(text.encode()).hexdigest()[:16]}'
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def read(self) -> dict[str, Record]:
        """Records of all finished images, by name."""
        found: dict[str, Record] = {}
        for file in sorted(self.folder.glob(f'{self._stem}-*.jsonl')):
            for line in file.read_bytes().splitlines():
                with suppress(ValueError):  # unfinished
                    found |= json.loads(line)
        return found

    @property
    def mine(self) -> Path:
        return self.folder / f'{self._stem}-{get_rank()}.jsonl'


class _Images(Dataset):
    def __init__(self, read: Reader, sources: Sequence[Source]):
        self.read, self.sources = read, sources

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, number: int) -> tuple[Source, dict | str]:
        source = self.sources[number]
        try:
            return source, self.read(source.file, number)
        except Unusable as error:
            return source, str(error)


@dataclass(frozen=True)
class Job:
    """One call of ``label``.

    Args:
        model (OldModel): The old model.
        out (Path): The file or folder to write. Progress is kept in ``OUT.part`` beside it until it is written.
        batch_size (int): Images of a batch.
        workers (int): Processes that read images.
        settings: What else the results depend on, as JSON: the config and the checkpoint.
    """

    model: OldModel
    out: Path
    batch_size: int
    workers: int = 0
    settings: Any = None

    @property
    def folder(self) -> Path:
        return self.out.with_name(f'{self.out.name}.part')

    @property
    def written(self) -> Path:
        """Where to write before :meth:`finish`."""
        return self.folder / f'written{self.out.suffix}'

    def finish(self) -> None:
        """Put what was written in its place, whole, and remove the progress."""
        os.replace(self.written, self.out)
        shutil.rmtree(self.folder)

    def run(
        self, what: str, sources: Sequence[Source], record_of: Callable[[Source, Any], Record], *depends_on
    ) -> dict[str, Record]:
        """Records of all images by name; those of images that cannot be used have the key :data:`FAULT`.

        Batches are the same whatever the number of processes and kills, so that results are too.

        Args:
            what (str): Says in the progress bar which images they are.
            record_of (Callable): Makes a record, as JSON, of an image and its data sample.
            depends_on: What the records depend on beside ``settings``, as JSON.

        Raises:
            ValueError: If no image can be used.
        """
        states = [source.state() for source in sources]
        progressed = Progressed(self.folder, what, self.settings, self.batch_size, states, *depends_on)
        done = progressed.read()
        blocks = [range(len(sources))[at : at + self.batch_size] for at in range(0, len(sources), self.batch_size)]
        mine = blocks[get_rank() :: get_world_size()]
        left = [block for block in mine if not all(sources[number].name in done for number in block)]
        total = sum(map(len, mine))
        loader = DataLoader(
            _Images(self.model.read, sources),
            batch_sampler=left,
            num_workers=min(self.workers, len(left)),
            collate_fn=list,
        )
        with open(progressed.mine, 'ab') as out, _bar(what, total, total - sum(map(len, left))) as advance:
            if out.tell():
                out.write(b'\n')  # after a line that a kill cut off
            for images in loader:
                out.write(json.dumps(self._records(images, record_of)).encode() + b'\n')
                out.flush()
                advance(len(images))
        barrier()
        found = progressed.read()
        records = {source.name: found[source.name] for source in sources}
        if all(FAULT in record for record in records.values()):
            raise ValueError(f'no image can be used: {"; ".join(faults(records)[:3])}; give the folder of the images')
        return records

    def _records(self, images: list, record_of: Callable[[Source, Any], Record]) -> dict[str, Record]:
        whole = [(source, sample) for source, sample in images if isinstance(sample, dict)]
        results = self.model.predict([sample for _, sample in whole]) if whole else []
        records = {source.name: {FAULT: sample} for source, sample in images if isinstance(sample, str)}
        for (source, _), result in zip(whole, results):
            try:
                records[source.name] = _of_right_size(source, record_of(source, result))
            except Unusable as error:
                records[source.name] = {FAULT: str(error)}
        return records


def _of_right_size(source: Source, record: Record) -> Record:
    size = tuple(record.get('size', ()))
    if size and source.size is not None and source.size != size:
        raise Unusable(f'is {size[0]}x{size[1]}, annotated as {source.size[0]}x{source.size[1]}')
    return record


@contextmanager
def _bar(title: str, total: int, finished: int) -> Iterator[Callable[[int], None]]:
    """A progress bar of the first process, and what advances it."""
    columns = TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, disable=get_rank() > 0, auto_refresh=False) as progress:  # no thread, as workers fork
        task = progress.add_task(title, total=total, completed=finished)
        yield lambda number: progress.update(task, advance=number, refresh=True)


def faults(records: dict[str, Record]) -> list[str]:
    """What is wrong with the images that cannot be used."""
    return [f'{name} {record[FAULT]}' for name, record in records.items() if FAULT in record]
