"""How far a command is, on a terminal; nothing is written into a file or a pipe."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, track


def tracked(items: Iterable, what: str, total: int | None = None) -> Iterable:
    """The items, with a progress bar while they are taken; ``total`` is their number where they have no ``len``."""
    console = Console(file=sys.stderr)
    return track(items, what, total, console=console, transient=True) if console.is_terminal else items


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show what is done and for how long, where it is not known how much is left."""
    console = Console(file=sys.stderr)
    if not console.is_terminal:  # rich would end its bar by an empty line
        yield
        return
    columns = SpinnerColumn(), TextColumn('{task.description}'), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        progress.add_task(what, total=None)
        yield
