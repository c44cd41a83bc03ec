"""Print what rollback a config means, without training: layer, source, lambda, w and half-life of every layer.

    python tools/analysis_tools/print_rollback.py CONFIG [--load-from CHECKPOINT] [--images N] [--parameters]
                                                  [--csv FILE] [--plot FILE] [--cfg-options KEY=VALUE ...]

Neither data set nor network nor GPU is needed. A config without rollback is shown as it would be with it.
"""

import argparse
import shlex
import sys
from pathlib import Path

# tools/, for launch.py, in place of this folder: numba would take the coverage.py here for the package of that name
sys.path[0] = str(Path(__file__).resolve().parents[1])

from olor_mm.analysis.rollback_table import examine, quiet
from olor_mm.engine.loading import CheckpointError, guard_loading

try:
    from matplotlib.backend_bases import FigureCanvasBase
    from rich.console import Console

    from olor_mm.analysis.rollback_views import plot_levels, print_report, write_csv
except ModuleNotFoundError as error:
    sys.exit(f'print_rollback: {error}; pip install rich matplotlib')

from launch import config_parser, load_config, remedy, summary


def main() -> None:
    parser = config_parser(__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--load-from', help='checkpoint for load_from of the config')
    parser.add_argument('--images', type=int, help='training images of an epoch, where the data set is not here')
    parser.add_argument('--parameters', action='store_true', help='also print every parameter')
    parser.add_argument('--csv', type=Path, help='file to write all figures of every parameter to')
    parser.add_argument('--plot', type=Path, help='file to draw lambda over depth into: .png, .svg, .pdf')
    parser.set_defaults(launcher='none', work_dir=None, local_rank=0)
    args = parser.parse_args()
    if args.images is not None and args.images < 1:
        parser.error(f'--images {args.images}: it takes at least one image; give 1 or more')
    for file in filter(None, (args.csv, args.plot)):
        if not file.parent.is_dir():
            parser.error(
                f'{str(file)!r} cannot be written: there is no directory {str(file.parent)!r}; make it, or give another'
            )
    formats = FigureCanvasBase.get_supported_filetypes()
    if args.plot and args.plot.suffix[1:] not in formats:
        parser.error(f'--plot {str(args.plot)!r}: give a file that ends with one of {", ".join(formats)}')
    if args.load_from and '://' not in args.load_from and not Path(args.load_from).is_file():
        parser.error(f'--load-from {args.load_from!r} is not a file; give a checkpoint')

    with quiet():
        cfg = load_config(args)
    if args.load_from:
        cfg.load_from = args.load_from
    guard_loading(args.trust_checkpoints)
    try:
        report = examine(cfg, args.images)
    except Exception as error:  # what a library makes of settings that it does not check
        is_plain = isinstance(error, ValueError)
        said = str(error) if is_plain else f'cannot be used: {summary(error)}'
        cause = error.__cause__ if is_plain else error
        said += f'. {remedy(cause, args.hints)}' if cause is not None and not isinstance(cause, CheckpointError) else ''
        sys.exit(f'print_rollback: {shlex.join(sys.argv[1:])}: {said}')
    # in a terminal as wide as that is; into a file or a pipe, the 100 columns that the tables are made for
    print_report(report, Console(width=None if sys.stdout.isatty() else 100), args.parameters)
    try:
        if args.csv:
            write_csv(report, args.csv)
        if args.plot:
            plot_levels(report, args.plot, f'Rollback of {Path(args.config).stem}')
    except (ValueError, OSError) as error:
        sys.exit(f'print_rollback: {shlex.join(sys.argv[1:])}: nothing was written: {error}. Name files that can be')


if __name__ == '__main__':
    main()
