"""The commands of ``python -m olor_mm``, and of ``olor``, which is the same."""

import argparse
import sys
from importlib import import_module
from pathlib import Path

from . import __version__
from .cli.parser import Parser

COMMANDS = dict(  # in the order of use: name to module of olor_mm.cli, description and example
    init=(
        'init',
        'write a config that trains a stock model on a folder of data',
        'photos --task detection --config mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    ),
    label=(
        'label',
        'label new images with an old model, so that training on them keeps its classes',
        'old_config.py old.pth photos --out labels.json',
    ),
    print_rollback=(
        'print_rollback',
        'print what rollback a config means, before training',
        'photos_detection.py',
    ),
    train=('train', 'train a config, or resume its training', 'photos_detection.py --resume'),
    test=('test', 'evaluate a checkpoint', 'photos_detection.py work_dirs/photos_detection/epoch_12.pth'),
    compare=('compare', 'compare finished runs in one report', "'plain=work_dirs/plain_*' 'olor=work_dirs/olor_*'"),
    list=('listing', 'list optimizers, constructors, hooks, rules, fragments and configs', 'hooks'),
)
WHAT = 'Fine-tune a pre-trained model and keep what it knows: layer-wise rollback (OLOR) for OpenMMLab.'
EXIT_CODES = """exit codes of all commands:
  0    done
  1    failed on the way, with a traceback
  2    cannot begin: the last line says what to change on the command line, in the config or in the data
  130  stopped by Ctrl-C
  143  stopped by SIGTERM; train saves a checkpoint first"""


def main() -> None:
    """Run the command that the first argument names; the command reads the others."""
    parser = _parser('olor' if Path(sys.argv[0]).stem == 'olor' else 'python -m olor_mm')
    command = parser.parse_args(sys.argv[1:2]).command
    sys.argv = [f'{parser.prog} {command}', *sys.argv[2:]]
    run(command)


def run(command: str) -> None:
    """Run one command with the rest of the command line; see :data:`EXIT_CODES`."""
    try:
        import_module(f'olor_mm.cli.{COMMANDS[command][0]}').main()
    except SystemExit as ended:
        if isinstance(ended.code, str):  # what has to be changed
            print(ended.code, file=sys.stderr)
            ended.code = 2
        raise


def _parser(prog: str) -> Parser:
    shown = [f'  {name:14}  {what}\n{"":18}{prog} {name} {example}' for name, (_, what, example) in COMMANDS.items()]
    parser = Parser(
        prog=prog,
        usage='%(prog)s COMMAND ...',
        description='\n'.join([WHAT, '', 'commands, in the order of use, each with an example:', *shown]),
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--version', action='version', version=__version__)
    parser.add_argument('command', choices=COMMANDS, metavar='COMMAND', help='one of those above; see COMMAND -h')
    return parser


if __name__ == '__main__':
    main()
