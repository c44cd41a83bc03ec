"""What the studies share: tables on disk, and a runner that goes on where it was stopped."""

import argparse
import csv
import hashlib
import json
import logging
import multiprocessing
import platform
import random
import subprocess
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from rich.console import Console

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DIGITS = 6  # significant ones, of measured values
console = Console(soft_wrap=True, highlight=False)


def read(file: Path) -> list[dict]:
    if not file.exists():
        return []
    with open(file, newline='') as lines:
        return list(csv.DictReader(lines))


def append(file: Path, fields: list[str], rows: list[dict]) -> None:
    """Write rows to the end of a table; of a new one, its columns too."""
    is_new = not file.exists()
    with open(file, 'a', newline='') as table:
        writer = csv.DictWriter(table, fields, lineterminator='\n')
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def arguments(doc: str | None, workers: int = 1) -> argparse.ArgumentParser:
    """The command line that all studies have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--tables', action='store_true', help='print the pages, run nothing')
    parser.add_argument('--again', type=int, metavar='N', help='run N random rows again')
    parser.add_argument('--seed', type=int, help='of the choice of these rows')
    how = f'processes, one core each (default: {workers})'
    parser.add_argument('--workers', type=int, default=workers, help=how)
    parser.add_argument('--minutes', type=float, default=float('inf'), help='begin nothing new after so many')
    return parser


def keyed(made: dict) -> dict:
    """The trial with its ``key``: a hash of all that determines its result."""
    return dict(made, key=hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:12])


def machine() -> str:
    cpu = next((line for line in Path('/proc/cpuinfo').read_text().splitlines() if 'model name' in line), '?: ?')
    return f'{cpu.split(":")[1].strip()}, {platform.machine()}'


def commit() -> str:
    """The commit of the checkout, with ``+`` where the package has changed since."""
    done = subprocess.run(['git', 'rev-parse', '--short=10', 'HEAD'], cwd=ROOT, capture_output=True, text=True)
    is_changed = subprocess.run(['git', 'diff', '--quiet', 'HEAD', '--', 'olor_mm'], cwd=ROOT).returncode
    return (done.stdout.strip() or 'unknown') + '+' * bool(is_changed)


def quiet() -> None:
    """What a process of its own begins with: of two beside each other each is faster than one with two threads."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)


@dataclass(frozen=True)
class Study:
    """A table, the trials that are to be in it, and what runs one of them.

    Args:
        files (tuple[Path, ...]): The table, and those of other studies whose rows serve here too.
        fields (list[str]): Its columns.
        plan (Callable): From the rows so far to the trials in the order they are worth running; None stands for one
            that depends on rows still to come.
        measure (Callable): From a trial to what was measured, a dict a row; it may replace fields of the trial.
    """

    files: tuple[Path, ...]
    fields: list[str]
    plan: Callable[[list[dict]], Iterable[dict | None]]
    measure: Callable[[dict], list[dict]]

    def rows(self) -> list[dict]:
        return [row for file in self.files for row in read(file)]

    def run_missing(self, workers: int = 1, minutes: float = float('inf')) -> None:
        """Run what the plan names and the table does not have; every result is on disk before another run begins."""
        end = time.monotonic() + 60 * minutes
        code = commit()  # what workers load now: a long study may see others come
        failed: set[str] = set()
        running: dict = {}
        with ProcessPoolExecutor(workers, multiprocessing.get_context('spawn'), initializer=quiet) as pool:
            while True:
                rows = self.rows()
                named, unknown = self.left(rows)
                busy = failed | {trial['key'] for trial in running.values()}
                missing = [trial for key, trial in named.items() if key not in busy]
                for trial in missing[: workers - len(running)] if time.monotonic() < end else ():
                    running[pool.submit(self.measure, trial)] = trial
                if not running:
                    break
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    trial = running.pop(future)
                    try:
                        self.write(trial, future.result(), code)
                    except Exception:  # the study goes on, and says which runs have failed
                        failed.add(trial['key'])
                        console.print(f'[red]failed[/red] {described(trial)}\n{traceback.format_exc()}', markup=True)
                        continue
                    console.print(f'{len(named) + unknown - 1} left: {described(trial)}', markup=False)
        if failed:
            raise SystemExit(f'{len(failed)} runs failed')
        if missing or unknown:
            console.print(f'{len(missing) + unknown} runs are left for the next time')

    def left(self, rows: list[dict]) -> tuple[dict[str, dict], int]:
        """The trials that are missing by key, and the number of those that cannot be named yet."""
        done = {row['key'] for row in rows}
        planned = list(self.plan(rows))
        named = {trial['key']: trial for trial in planned if trial and trial['key'] not in done}
        return named, sum(trial is None for trial in planned)

    def write(self, trial: dict, measured: list[dict], code: str) -> None:
        known = dict(commit=code, machine=machine(), date=date.today().isoformat())
        rows = []
        for row in measured:
            made = {**trial, **row, **known}
            made['options'] = json.dumps(made['options'], sort_keys=True)
            shown = {key: value for key, value in made.items() if key in self.fields}
            rows.append({k: f'{v:.{DIGITS}g}' if isinstance(v, float) else v for k, v in shown.items()})
        append(self.files[0], self.fields, rows)

    def run_again(self, count: int, seed: int | None, value: str = 'value') -> None:
        """Run random rows again, and say whether each is within the spread over seeds of the same setting."""
        rows = {row['key']: row for row in reversed(read(self.files[0]))}
        trials = {trial['key']: trial for trial in self.plan(self.rows()) if trial and trial['key'] in rows}
        alike: dict[str, list[dict]] = {}
        for trial in trials.values():
            setting = {key: of for key, of in trial.items() if key not in ('key', 'part', 'seed')}
            alike.setdefault(json.dumps(setting, sort_keys=True), []).append(trial)
        groups = {trial['key']: group for group in alike.values() if len(group) > 1 for trial in group}
        chosen = random.Random(seed).sample(sorted(groups), min(count, len(groups)))
        outside = 0
        for key in chosen:
            again = next(row for row in self.measure(trials[key]) if row.get('key', key) == key)[value]
            same = [float(rows[trial['key']][value]) for trial in groups[key]]
            low, high = min(same), max(same)
            inside = low - 1e-3 <= again <= high + 1e-3
            outside += not inside
            console.print(
                f'{described(trials[key])}: {float(rows[key][value]):.4g} in the table, {again:.4g} again, '
                f'spread {low:.4g} to {high:.4g}: {"inside" if inside else "OUTSIDE"}',
                markup=False,
            )
        if outside:
            raise SystemExit(f'{outside} of {len(chosen)} rows are outside')


def described(trial: dict) -> str:
    named = ('part', 'task', 'data', 'network', 'size', 'method', 'options', 'seed')
    return ', '.join(str(trial[key]) for key in named if trial.get(key) not in (None, ''))
