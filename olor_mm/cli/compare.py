"""Compare runs: one report of what each method learned and what it forgot.

    python -m olor_mm compare 'AdamW=work_dirs/full_*' 'OLOR=work_dirs/olor_*' --out report

Every run is a work_dir of a training. The others are compared with the first method. Without LABEL=, runs whose
settings differ in the seed alone are one method. The report is report.html (one file), report.md, figures/ and CSV.
"""

import argparse
import sys
from pathlib import Path

from ..durable.loading import guard_loading
from ..inspect.rollback_table import quiet
from .parser import Parser, add_trust

try:
    from ..compare.page import compare, write
    from ..compare.runs import RunError, find_runs
    from ..progress import waiting
except ModuleNotFoundError as error:
    sys.exit(f"compare: {error}; pip install -e '.[analysis]'")


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('runs', nargs='+', metavar='LABEL=GLOB', help='work_dirs of a method, in quotes')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/compare'), help='directory of the report')
    parser.add_argument('--metric', nargs='+', default=[], help='scalars to compare; the first against retention')
    parser.add_argument('--retention', help='scalar to plot the metric against, such as pretrained/kl or drift/all')
    parser.add_argument('--images', type=int, default=4, help='images to draw predictions on, 0 for none (default: 4)')
    parser.add_argument('--score-thr', type=float, default=0.3, help='least score of objects drawn (default: 0.3)')
    add_trust(parser)
    args = parser.parse_args()
    if args.images < 0:
        parser.error(f'--images {args.images}: give 0 or more')
    if args.out.exists() and not args.out.is_dir():
        parser.error(f'--out {args.out} is a file; give a directory')
    guard_loading(args.trust_checkpoints)
    try:
        with waiting('reading the runs and drawing'), quiet():
            report, tables = compare(find_runs(args.runs), args.metric, args.retention, args.images, args.score_thr)
        write(report, tables, args.out)
    except (RunError, OSError) as error:
        sys.exit(f'compare: {error}')
    print(f'{args.out / "report.html"} is written, one file; report.md, CSV files and figures are beside it')
