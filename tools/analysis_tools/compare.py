"""Compare runs: one report of what each method learned and what it forgot.

    python tools/analysis_tools/compare.py 'AdamW=work_dirs/full_*' 'OLOR=work_dirs/olor_*' --out report

Every run is a work_dir of a training. The first method is what the others are compared to. Without LABEL=, runs whose
settings differ in the seed alone are one method. Written are report.html (one file), report.md, figures/ and CSV.
"""

import argparse
import sys
from pathlib import Path

# tools/, in place of this folder: numba would take the coverage.py here for the package of that name
sys.path[0] = str(Path(__file__).resolve().parents[1])

import olor_mm  # noqa: F401
from olor_mm.analysis.rollback_table import quiet
from olor_mm.engine.loading import guard_loading

try:
    from olor_mm.analysis.compare import compare, write
    from olor_mm.analysis.runs import RunError, find_runs
except ModuleNotFoundError as error:
    sys.exit(f"compare: {error}; pip install -e '.[analysis]'")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('runs', nargs='+', metavar='LABEL=GLOB', help='work_dirs of a method, in quotes')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/compare'), help='directory of the report')
    parser.add_argument('--metric', nargs='+', default=[], help='scalars to compare; the first against retention')
    parser.add_argument('--retention', help='scalar to hold the metric against, such as upstream/kl or drift/all')
    parser.add_argument('--images', type=int, default=4, help='images to draw predictions on, 0 for none (default: 4)')
    parser.add_argument('--score-thr', type=float, default=0.3, help='least score of objects drawn (default: 0.3)')
    parser.add_argument('--trust-checkpoints', action='store_true', help='open checkpoints even if they could run code')
    args = parser.parse_args()
    if args.images < 0:
        parser.error(f'--images {args.images}: it takes 0 or more')
    if args.out.exists() and not args.out.is_dir():
        parser.error(f'--out {args.out}: there is a file of this name; name a directory')
    guard_loading(args.trust_checkpoints)
    try:
        with quiet():
            report, tables = compare(find_runs(args.runs), args.metric, args.retention, args.images, args.score_thr)
        write(report, tables, args.out)
    except (RunError, OSError) as error:
        sys.exit(f'compare: {error}')
    print(f'{args.out / "report.html"} is written, one file; report.md, CSV files and figures are beside it')


if __name__ == '__main__':
    main()
