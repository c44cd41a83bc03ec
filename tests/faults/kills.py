"""Trainings that are killed again and again and resumed, beside the same trainings left alone.

python tests/faults/kills.py work_dirs/reliability/kills.jsonl                              # 8 runs, 10 kills each
python tests/faults/kills.py work_dirs/reliability/kills_2.jsonl --processes 2 --runs 2     # of two processes

It writes a row for every kill and every run, and skips runs that are in the file. About 3 minutes a run on 2 CPU cores,
most of it for starting.
"""

import argparse
import itertools
import json
import random
import re
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from jobs import children, kill, kill_all, start, wait_for

from olor_mm.durable.loading import CheckpointError, load

EPOCHS = 16
OPTIONS = (
    '--no-validate',
    'train_dataloader.dataset.indices=32',
    'train_dataloader.batch_size=16',
    f'train_cfg.max_epochs={EPOCHS}',
    f'param_scheduler.T_max={EPOCHS}',
    'default_hooks.checkpoint.max_keep_ckpts=2',
    'log_level=INFO',
)
MOMENTS = (
    'saving',
    'training',
    'saving',
    'starting',
    'training',
    'saving',
    'starting',
    'training',
    'saving',
    'starting',
)
HANGS = 120  # seconds to wait for the rest of a job


def differences(one: dict, other: dict) -> dict[str, float]:
    """Largest differences of weights and buffers, of optimizer states except anchors, and of anchors."""
    largest = dict(weights=0.0, states=0.0, anchors=0.0)
    states = [checkpoint['optimizer']['state'] for checkpoint in (one, other)]
    pairs = [('weights', one['state_dict'], other['state_dict'])]
    pairs += [('states', states[0][i], states[1].get(i, {})) for i in states[0]]
    for kind, these, those in pairs:
        if these.keys() != those.keys():
            return dict.fromkeys(largest, float('inf'))
        for key, value in these.items():
            kind = 'anchors' if key == 'anchor' else kind
            if not torch.equal(value, those[key]):  # nan if not a number
                largest[kind] = max(largest[kind], float((value.double() - those[key].double()).abs().max()))
    return largest


def newest(work_dir: Path) -> int:
    """The epoch that ``last_checkpoint`` names; 0 if there is none yet."""
    pointer = work_dir / 'last_checkpoint'
    return int(re.search(r'epoch_(\d+)\.pth$', pointer.read_text())[1]) if pointer.exists() else 0


def half_written(work_dir: Path) -> set:
    return {(file.name, file.stat().st_mtime_ns) for file in work_dir.glob('.*.part') if file.exists()}


class Run:
    """One training that is killed, its files in ``folder``."""

    def __init__(self, folder: Path, seed: int, processes: int):
        self.work_dir, self.processes = folder / 'killed', processes
        self.options = (*OPTIONS, f'randomness.seed={seed}')
        self.random = random.Random(seed)
        straight = start(folder / 'straight', *self.options, processes=processes)
        assert straight.wait() == 0, (folder / 'straight.log').read_text()[-3000:]
        self.twin = load(folder / f'straight/epoch_{EPOCHS}.pth')

    def start(self) -> subprocess.Popen:
        return start(self.work_dir, '--resume', *self.options, processes=self.processes)

    def is_moment(self, process: subprocess.Popen, moment: str) -> bool:
        """Wait for it; whether the training has not ended before."""
        before, half = newest(self.work_dir), half_written(self.work_dir)
        if moment == 'saving':
            reached, more = wait_for(process, lambda: half_written(self.work_dir) - half), 0.03
        elif moment == 'training':
            reached, more = wait_for(process, lambda: newest(self.work_dir) > before), 1.0
        else:
            reached, more = True, 6.0 * max(1, self.processes)
        time.sleep(self.random.uniform(0, more))
        return reached and process.poll() is None

    def kill(self, process: subprocess.Popen, one_rank: bool) -> str | None:
        """What went wrong, if anything did."""
        ranks = children(process.pid)
        if not one_rank or len(ranks) < 2:
            kill_all(process)
            return None
        kill(self.random.choice(ranks))
        try:
            return None if process.wait(HANGS) else 'the other process ended with exit code 0'
        except subprocess.TimeoutExpired:
            kill_all(process)
            return f'the other process was still there after {HANGS} s'

    def lost(self, before: int) -> str | None:
        """What is wrong with the files that a kill left, if anything is."""
        last = newest(self.work_dir)
        if last < before:
            return f'last_checkpoint names epoch {last}, and named {before} before the kill'
        try:
            for file in self.work_dir.glob('epoch_*.pth'):
                load(file)
        except CheckpointError as error:
            return str(error)
        wrong = last and differences(load(self.work_dir / f'epoch_{last}.pth'), self.twin)['anchors']
        return f'anchors differ by {wrong}' if wrong else None

    def killed(self, moment: str, one_rank: bool) -> dict | None:
        """A row, or None if the training was over before."""
        log = Path(f'{self.work_dir}.log')
        expected, read = newest(self.work_dir), log.stat().st_size if log.exists() else 0
        half = half_written(self.work_dir)
        # killed between the first checkpoint and the file that names it: the checkpoint is whole, and taken
        unnamed = {int(file.stem.removeprefix('epoch_')) for file in self.work_dir.glob('epoch_*.pth')}
        process = self.start()
        if not self.is_moment(process, moment):
            return None
        before = newest(self.work_dir)
        wrong = self.kill(process, one_rank) or self.lost(before)
        in_the_middle = bool(half_written(self.work_dir) - half)
        resumed = re.findall(r'resumed epoch: (\d+)', log.read_text()[read:])
        if resumed and {expected or max(unnamed, default=0)} != {int(epoch) for epoch in resumed}:
            wrong = wrong or f'resumed from epoch {resumed[0]}, and the last checkpoint was of {expected}'
        who = 'one of two processes' if one_rank else 'a job of two processes' if self.processes else 'a run'
        return dict(
            case=f'SIGKILL of {who} while {moment}',
            outcome=wrong or 'last checkpoint whole, anchors as they were',
            ok=wrong is None,
            detail=f'at epoch {before} of {EPOCHS}' + ', a file was half written' * in_the_middle,
        )


def study(out: Path, seed: int, processes: int, kills: int) -> list[dict]:
    """Rows of one run; they are added to the file when it has ended."""
    with tempfile.TemporaryDirectory() as folder:
        run, rows = Run(Path(folder), seed, processes), []
        moments = list(itertools.islice(itertools.cycle(MOMENTS), kills))
        run.random.shuffle(moments)
        for i, moment in enumerate(moments):
            row = run.killed(moment, one_rank=processes > 1 and i % 2 == 0)
            if row is None:
                break
            print(f'run {seed}, kill {i + 1}: {row["case"]}, {row["detail"]}: {row["outcome"]}', flush=True)
            rows.append(row)
        done = run.start()
        log = Path(f'{run.work_dir}.log')
        if done.wait():
            ended, ok = f'did not end: {log.read_text()[-1000:]}', False
        else:
            found = differences(load(run.work_dir / f'epoch_{EPOCHS}.pth'), run.twin)
            largest = max(found.values())
            ok = len(rows) == kills and largest <= (1e-6 if processes else 0) and not half_written(run.work_dir)
            ended = f'bit-identical to its uninterrupted twin after {len(rows)} kills'
            if largest:
                ended = f'differs from its uninterrupted twin by {found} after {len(rows)} kills'
    rows.append(dict(case='run of 2 processes' if processes else 'run of 1 process', outcome=ended, ok=ok, detail=''))
    print(f'run {seed}: {ended}', flush=True)
    rows = [dict(study=out.stem, run=seed, **row) for row in rows]
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, 'a') as file:
        file.write(''.join(json.dumps(row) + '\n' for row in rows))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description='Kill trainings at random moments and resume them')
    parser.add_argument('out', type=Path, help='JSON lines file; its name is that of the study')
    parser.add_argument('--runs', type=int, default=8)
    parser.add_argument('--kills', type=int, default=10, help='of every run (default: 10)')
    parser.add_argument('--processes', type=int, default=0, choices=[0, 2], help='of torchrun (default: without it)')
    parser.add_argument('--at-most', type=int, help='end after this many runs; the next call goes on')
    parser.add_argument('--jobs', type=int, default=1, help='runs at the same time')
    args = parser.parse_args()
    done = {json.loads(line)['run'] for line in args.out.read_text().splitlines()} if args.out.exists() else set()
    left = [seed for seed in range(args.runs) if seed not in done]
    with ThreadPoolExecutor(args.jobs) as jobs:  # the work is done in other processes
        runs = [jobs.submit(study, args.out, seed, args.processes, args.kills) for seed in left[: args.at_most]]
    for run in runs:
        run.result()


if __name__ == '__main__':
    main()
