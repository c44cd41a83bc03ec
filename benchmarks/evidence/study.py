"""The study: does it help? Runs what is missing, and prints all tables from benchmarks/evidence/results.csv.

make evidence                                        # runs what has not been run yet, then prints the tables
python benchmarks/evidence/study.py --tables         # prints them from what there is
python benchmarks/evidence/study.py --again 3        # runs three random rows again and holds them to the spread
"""

import argparse
import csv
import json
import platform
import queue
import random
import subprocess
import sys
import threading
import time
from datetime import date
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

sys.path.insert(0, str(Path(__file__).parent))
import tables
from plan import TASKS, plan

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE / 'results.csv'
FIELDS = [
    'key',
    'part',
    'task',
    'method',
    'alpha',
    'options',
    'seed',
    'value',
    'before',
    'old',
    'old_restored',
    'agreement',
    'kl',
    'agreement_restored',
    'kl_restored',
    'drift_shallow',
    'drift_middle',
    'drift_deep',
    'drift_mean',
    'variant',
    'half_life',
    'iters',
    'batch',
    'size',
    'norm_eval',
    'seconds',
    'commit',
    'machine',
    'date',
]
DIGITS = 6  # significant ones, of measured values
console = Console()


def read(file: Path = RESULTS) -> list[dict]:
    if not file.exists():
        return []
    with open(file, newline='') as lines:
        return list(csv.DictReader(lines))


def machine() -> str:
    cpu = next((line for line in Path('/proc/cpuinfo').read_text().splitlines() if 'model name' in line), '?: ?')
    return f'{cpu.split(":")[1].strip()}, {platform.machine()}'


def commit() -> str:
    done = subprocess.run(['git', 'rev-parse', '--short=10', 'HEAD'], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or 'unknown'


class Worker(threading.Thread):
    """A process that runs trials, one after the other; it is started anew if it dies."""

    def __init__(self, jobs: queue.Queue, done: queue.Queue, log: Path):
        super().__init__(daemon=True)
        self.jobs, self.done, self.log = jobs, done, log

    def run(self) -> None:
        process = None
        while (trial := self.jobs.get()) is not None:
            if process is None or process.poll() is not None:
                with open(self.log, 'a') as log:
                    process = subprocess.Popen(
                        [sys.executable, HERE / 'trial.py'],
                        cwd=ROOT,
                        text=True,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=log,
                    )
            try:
                process.stdin.write(json.dumps(trial) + '\n')
                process.stdin.flush()
                answer = json.loads(process.stdout.readline())
            except (OSError, ValueError) as error:
                process.kill()
                answer = dict(error=f'the process ended: {error}')
            self.done.put((trial, answer))
        if process is not None:
            process.stdin.close()
            process.wait()


def rows_of(trial: dict, answer: dict, code: str) -> list[dict]:
    """The answer of a worker as rows of the table; ``code`` is the commit that it ran."""
    known = {key: trial.get(key, '') for key in FIELDS}
    known.update(commit=code, machine=machine(), date=date.today().isoformat())
    rows = []
    for measured in answer['rows']:
        options = {} if 'alpha' in measured else trial['options']
        numbers = {k: f'{v:.{DIGITS}g}' if isinstance(v, float) else v for k, v in measured.items()}
        rows.append({**known, 'options': json.dumps(options, sort_keys=True), **numbers})
    return rows


def run_missing(tasks: list[str], workers: int, limit: float) -> None:
    """Run what the plan names and the table does not have; each result is on disk before the next begins."""
    results = read()
    end = time.monotonic() + 60 * limit
    code = commit()  # what workers load now: a long study may see others come
    jobs, done = queue.Queue(), queue.Queue()
    log = ROOT / 'work_dirs/evidence.log'
    log.parent.mkdir(exist_ok=True)
    threads = [Worker(jobs, done, log) for _ in range(workers)]
    for thread in threads:
        thread.start()
    running: dict[str, dict] = {}
    failed: dict[str, str] = {}
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn('{task.fields[left]}'), console=console) as progress:
        bar = progress.add_task('evidence', left='')
        while True:
            planned = list(plan(results, tasks))
            finished = {row['key'] for row in results}
            named = {trial['key']: trial for trial in planned if trial}
            missing = [t for k, t in named.items() if k not in finished and k not in running and k not in failed]
            unknown = sum(trial is None for trial in planned)
            mean = sum(float(row['seconds']) for row in results) / max(len(finished), 1)
            waiting = len(missing) + len(running) + unknown
            left = f'about {waiting * mean / workers / 3600:.1f} h left' if results else ''
            if unknown:
                left += f' ({unknown} wait for the tuning)'
            progress.update(bar, completed=len(finished & set(named)), total=len(named) + unknown, left=left)
            for trial in missing[: workers - len(running)] if time.monotonic() < end else ():
                running[trial['key']] = trial
                jobs.put(trial)
            if not running:
                break
            trial, answer = done.get()
            del running[trial['key']]
            if 'error' in answer:
                failed[trial['key']] = answer['error']
                console.print(f'[red]failed[/red] {trial["part"]} {trial["task"]} {trial["method"]}: {answer["error"]}')
                continue
            rows = rows_of(trial, answer, code)
            results += [{key: str(row[key]) for key in FIELDS} for row in rows]
            is_new = not RESULTS.exists()
            with open(RESULTS, 'a', newline='') as table:
                writer = csv.DictWriter(table, FIELDS, lineterminator='\n')
                if is_new:
                    writer.writeheader()
                writer.writerows(rows)
    for _ in threads:
        jobs.put(None)
    for thread in threads:
        thread.join()
    if failed:
        raise SystemExit(f'{len(failed)} trials failed; {log} says why')
    if unknown or missing:
        console.print(f'{len(missing) + unknown} trials are left for the next time')


def run_again(count: int, seed: int | None) -> None:
    """Run random rows of the table again, and say whether they are within what the table prints as spread."""
    results = read()
    known = {trial['key']: trial for trial in plan(results, list(TASKS)) if trial}
    finals = [row for row in results if row['part'] == 'final' and row['method'] != 'wise_ft']
    chosen = random.Random(seed).sample(finals, min(count, len(finals)))
    jobs, done = queue.Queue(), queue.Queue()
    worker = Worker(jobs, done, ROOT / 'work_dirs/evidence.log')
    worker.start()
    outside = 0
    for row in chosen:
        jobs.put(known[row['key']])
        _, answer = done.get()
        same = [float(r['value']) for r in finals if (r['task'], r['method']) == (row['task'], row['method'])]
        value, low, high = answer['rows'][0]['value'], min(same), max(same)
        inside = low - 1e-3 <= value <= high + 1e-3
        outside += not inside
        console.print(
            f'{row["task"]}, {row["method"]}, seed {row["seed"]}: {float(row["value"]):.4g} in the table, '
            f'{value:.4g} again, spread {low:.4g} to {high:.4g}: {"inside" if inside else "OUTSIDE"}'
        )
    jobs.put(None)
    if outside:
        raise SystemExit(f'{outside} of {len(chosen)} rows are outside')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--tables', action='store_true', help='print the tables, run nothing')
    parser.add_argument('--again', type=int, metavar='N', help='run N random rows again')
    parser.add_argument('--seed', type=int, help='of the choice of these rows')
    parser.add_argument('--tasks', nargs='+', default=list(TASKS), choices=list(TASKS), help='run these alone')
    parser.add_argument(
        '--workers', type=int, default=2, help='processes beside each other, one core each (default: 2)'
    )
    parser.add_argument('--minutes', type=float, default=float('inf'), help='begin nothing new after so many')
    args = parser.parse_args()
    if args.again:
        return run_again(args.again, args.seed)
    if not args.tables:
        subprocess.run([sys.executable, HERE / 'data.py'], check=True)
        run_missing(args.tasks, args.workers, args.minutes)
    tables.show(read(), console)


if __name__ == '__main__':
    main()
