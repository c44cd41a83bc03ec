"""What the benchmarks share: the models, optimizers as a config builds them, timing in turns, and tables."""

import argparse
import contextlib
import csv
import io
import logging
import platform
import random
import statistics
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch
from mmengine.hub import get_model
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, build_optim_wrapper
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

import olor_mm  # noqa: F401

ADAMW = dict(type='AdamW', lr=1e-4, weight_decay=0.05)
THREADS = 2
DROPPED = 3  # rounds: the first step makes states and anchors, and compiles the kernels
console = Console(width=130)


def quiet() -> None:
    """What the libraries tell while a model is built is not of interest here."""
    warnings.filterwarnings('ignore', module='mmdet.*|mmcv.*')
    MMLogger.get_current_instance().setLevel(logging.WARNING)


def stock_model(config: str) -> nn.Module:
    """The model of a stock config, with random weights: nothing is downloaded."""
    with contextlib.redirect_stdout(io.StringIO()):
        model = get_model(config)
    quiet()
    return model


def stock_wrapper(model: nn.Module, **optimizer) -> OptimWrapper:
    """As MMEngine builds it; the option for norm layers is what gives one group per parameter."""
    cfg = dict(optimizer={**ADAMW, **optimizer}, paramwise_cfg=dict(norm_decay_mult=0.0))
    return build_optim_wrapper(model, cfg)


def olor_wrapper(model: nn.Module, max_drift: float | None = None, **optimizer) -> OptimWrapper:
    """The same with rollback of the backbone, by a level or by a drift budget."""
    strength = dict(max_level=1e-2) if max_drift is None else dict(max_drift=max_drift)
    rollback = dict(strength, pretrained=['backbone'])  # prefixes, as there is no checkpoint
    cfg = dict(
        constructor='OLOROptimWrapperConstructor',
        optimizer={**ADAMW, 'type': 'AdamWOLOR', **optimizer},
        paramwise_cfg=dict(rollback=rollback, norm_decay_mult=0.0),
    )
    return build_optim_wrapper(model, cfg)


def in_turns(steps: dict[str, Callable], rounds: int, what: str) -> dict[str, list[float]]:
    """Milliseconds of every step in every round but the first ones.

    A round takes all steps in a random order, so that load of the machine, and what a step leaves behind in caches and
    threads, meets all alike. Each step is given the number of its round.
    """
    times = {name: [] for name in steps}
    order, shuffle = list(steps), random.Random(0).shuffle
    for i in track(range(DROPPED + rounds), what, console=console, transient=True, disable=not console.is_terminal):
        shuffle(order)
        for name in order:
            start = time.perf_counter()
            steps[name](i)
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: values[DROPPED:] for name, values in times.items()}


def medians(times: dict[str, list[float]]) -> dict[str, float]:
    """The median of every list."""
    return {name: statistics.median(values) for name, values in times.items()}


def machine() -> str:
    """What the figures were measured on, in one line."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        cpu = next((line.partition(':')[2].strip() for line in lines if line.startswith('model name')), cpu)
    modules = map(import_module, ('torch', 'numba', 'mmengine', 'mmpretrain', 'mmdet'))
    packages = ', '.join(f'{module.__name__} {module.__version__}' for module in modules)
    return f'{cpu}, {THREADS} threads, {platform.system()}, Python {platform.python_version()}, {packages}'


class Report:
    """Tables for the terminal and, as Markdown, for a file.

    Args:
        title (str): Heading of the file.
        command (str): What was run.
    """

    def __init__(self, title: str, command: str):
        self.blocks = [f'# {title}', f'`{command}`', machine() + '.']
        console.print(machine())

    def table(self, title: str, header: list[str], rows: list[list[str]], note: str) -> None:
        """Print a table and keep it; the first column is text, the others are figures."""
        shown = Table(title=title, caption=note, title_justify='left', caption_justify='left')
        for i, name in enumerate(header):
            shown.add_column(name, justify='right' if i else 'left')
        for row in rows:
            shown.add_row(*row)
        console.print(shown)
        rule = ['---'] + ['---:'] * (len(header) - 1)
        lines = '\n'.join(f'| {" | ".join(row)} |' for row in (header, rule, *rows))
        self.blocks += [f'## {title}', note, lines]

    def save(self, out: Path, name: str, records: list[dict]) -> None:
        """Write NAME.md and, with all figures, NAME.csv."""
        out.mkdir(parents=True, exist_ok=True)
        (out / f'{name}.md').write_text('\n\n'.join(self.blocks) + '\n')
        with open(out / f'{name}.csv', 'w', newline='') as file:
            writer = csv.DictWriter(file, list(records[0]), lineterminator='\n')
            writer.writeheader()
            writer.writerows(records)


def arguments(description: str, models: list[str], repeats: int, written: str) -> argparse.Namespace:
    """The command line of a benchmark: ``models``, ``repeats`` and ``out``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('--models', nargs='+', choices=models, default=models, help='default: all')
    parser.add_argument('--repeats', type=int, default=repeats, help=f'rounds that are measured (default: {repeats})')
    parser.add_argument('--out', type=Path, help=f'folder for {written}')
    return parser.parse_args()


def start(rounds: int) -> None:
    """Settings of a run.

    Raises:
        SystemExit: If there is nothing to measure.
    """
    if rounds < 1:
        raise SystemExit(f'--repeats {rounds}: at least 1')
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
