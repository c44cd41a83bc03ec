"""The study of methods on small tasks: runs what is missing, and prints docs/en/evidence_tables.md from results.csv.

make evidence                                        # runs what is missing of all studies, then prints all pages
python benchmarks/evidence/study.py --tables         # prints the page from what there is
python benchmarks/evidence/study.py --again 3        # runs three random rows again and holds them to the spread
"""

import argparse
import subprocess
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import tables
from plan import TASKS, plan
from rows import HERE, Study, console, read

RESULTS, NATURAL = HERE / 'results.csv', HERE / 'natural.csv'
FIELDS = [
    *('key', 'part', 'task', 'method', 'alpha', 'options', 'seed'),
    *('value', 'before', 'old', 'old_restored', 'agreement', 'kl', 'agreement_restored', 'kl_restored'),
    *('drift_shallow', 'drift_middle', 'drift_deep', 'drift_mean', 'variant', 'half_life'),
    *('iters', 'batch', 'size', 'norm_eval', 'seconds', 'commit', 'machine', 'date'),
]


def measure(trial: dict) -> list[dict]:
    import trial as runs

    return runs.measure(trial)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--tables', action='store_true', help='print the page, run nothing')
    parser.add_argument('--again', type=int, metavar='N', help='run N random rows again')
    parser.add_argument('--seed', type=int, help='of the choice of these rows')
    parser.add_argument('--tasks', nargs='+', default=list(TASKS), choices=list(TASKS), help='run these alone')
    parser.add_argument('--workers', type=int, default=2, help='processes, one core each (default: 2)')
    parser.add_argument('--minutes', type=float, default=float('inf'), help='begin nothing new after so many')
    args = parser.parse_args()
    study = Study((RESULTS,), FIELDS, partial(plan, tasks=args.tasks), measure)
    if args.again:
        return study.run_again(args.again, args.seed)
    if not args.tables:
        subprocess.run([sys.executable, HERE / 'data.py'], check=True)
        study.run_missing(args.workers, args.minutes)
    tables.show(read(RESULTS), read(NATURAL), console)


if __name__ == '__main__':
    main()
