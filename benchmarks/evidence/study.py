"""The study of methods on small tasks: runs what is missing, and prints docs/en/evidence_tables.md from results.csv.

make evidence                                        # runs what is missing of all studies, then prints all pages
python benchmarks/evidence/study.py --tables         # prints the page from what there is
python benchmarks/evidence/study.py --again 3        # runs three random rows again and holds them to the spread
"""

import subprocess
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import tables
from plan import TASKS, plan
from rows import HERE, Study, arguments, console, quiet, read

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
    parser = arguments(__doc__, 2)
    parser.add_argument('--tasks', nargs='+', default=list(TASKS), choices=list(TASKS), help='run these alone')
    args = parser.parse_args()
    study = Study((RESULTS,), FIELDS, partial(plan, tasks=args.tasks), measure)
    if args.again:
        quiet()
        return study.run_again(args.again, args.seed)
    if not args.tables:
        subprocess.run([sys.executable, HERE / 'data.py'], check=True)
        study.run_missing(args.workers, args.minutes)
    tables.show(read(RESULTS), read(NATURAL), console)


if __name__ == '__main__':
    main()
