"""How far a command is, on a terminal; nothing is written into a file or a pipe."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, track


def tracked(items: Iterable, what: str, total: int | None = None) -> Iterable:
    """The items, with a progress bar while they are taken; ``total`` is their number where they have no ``len``."""
    return track(items, what, total, console=Console(file=sys.stderr), transient=True)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show what is done and for how long, where it is not known how much is left."""
    columns = SpinnerColumn(), TextColumn('{task.description}'), TimeElapsedColumn()
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        progress.add_task(what, total=None)
        yield
