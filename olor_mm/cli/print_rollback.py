"""Print what rollback a config means, without training: layer, source, lambda, w and half-life, or budget and bound.

    python -m olor_mm print_rollback CONFIG [--load-from CHECKPOINT] [--images N] [--parameters]
                                            [--csv FILE] [--plot FILE] [--cfg-options KEY=VALUE ...]

Neither data set nor network nor GPU is needed. A config without rollback is shown as it would be with it.
"""

import argparse
import sys
from pathlib import Path

from ..inspect.rollback_table import examine, quiet

try:
    from matplotlib.backend_bases import FigureCanvasBase
    from rich.console import Console

    from ..inspect.rollback_views import plot_levels, print_report, write_csv
    from ..progress import waiting
except ModuleNotFoundError as error:
    sys.exit(f'print_rollback: {error}; pip install rich matplotlib')

from .launch import config_parser, existing, guarded, load_config


def main() -> None:
    parser = config_parser(__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--load-from', type=existing, help='checkpoint for load_from of the config')
    parser.add_argument('--images', type=int, help='training images of an epoch, where the data set is not here')
    parser.add_argument('--parameters', action='store_true', help='also print every parameter')
    parser.add_argument('--csv', type=Path, help='file to write all figures of every parameter to')
    parser.add_argument('--plot', type=Path, help='file to draw lambda and budget over depth into: .png, .svg, .pdf')
    parser.set_defaults(launcher='none', work_dir=None, local_rank=0)
    args = parser.parse_args()
    if args.images is not None and args.images < 1:
        parser.error(f'--images {args.images}: give 1 or more')
    for option, file in dict(csv=args.csv, plot=args.plot).items():
        if file is not None and not file.parent.is_dir():
            parser.error(f'--{option} {str(file)!r}: give a file in a directory that is there')
    formats = FigureCanvasBase.get_supported_filetypes()
    if args.plot and args.plot.suffix[1:] not in formats:
        parser.error(f'--plot {str(args.plot)!r}: give a file that ends with one of {", ".join(formats)}')
    if args.load_from and Path(args.load_from).is_dir():
        parser.error(f'--load-from {args.load_from!r} is a directory; give a checkpoint')
    with quiet():
        cfg = load_config(args)
    if args.load_from:
        cfg.load_from = args.load_from
    with guarded(args), waiting('building the model and loading its weights'):
        report = examine(cfg, args.images)
    # in a terminal as wide as that is; into a file or a pipe, the 100 columns that the tables are made for
    print_report(report, Console(width=None if sys.stdout.isatty() else 100), args.parameters)
    try:
        if args.csv:
            write_csv(report, args.csv)
        if args.plot:
            plot_levels(report, args.plot, f'Rollback of {Path(args.config).stem}')
    except (ValueError, OSError) as error:
        sys.exit(f'print_rollback: --csv {args.csv}, --plot {args.plot}: {error}; give other files')
