"""The commands of ``python -m olor_mm``."""

import argparse
import sys
from importlib import import_module

from . import __version__

COMMANDS = dict(  # name to module of olor_mm.cli and description
    train=('train', 'train a config, as tools/train.py does'),
    test=('test', 'evaluate a checkpoint, as tools/test.py does'),
    print_rollback=('print_rollback', 'print what rollback a config means, before training'),
    compare=('compare', 'compare finished runs in one report'),
    init=('init', 'write a config that trains a stock model on a folder of data'),
    label=('label', 'label new images with an old model, so that training on them keeps its classes'),
    list=('listing', 'list optimizers, constructors, hooks, rules, fragments and configs'),
)


def main() -> None:
    """Run the command that the first argument names; the command reads the others."""
    parser = argparse.ArgumentParser(prog='python -m olor_mm', description='Fine-tuning with layer-wise rollback')
    parser.add_argument('--version', action='version', version=__version__)
    commands = parser.add_subparsers(dest='command', required=True)
    for name, (_, what) in COMMANDS.items():
        commands.add_parser(name, help=what, add_help=False)
    command = parser.parse_args(sys.argv[1:2]).command
    sys.argv = [f'{parser.prog} {command}', *sys.argv[2:]]
    import_module(f'olor_mm.cli.{COMMANDS[command][0]}').main()


if __name__ == '__main__':
    main()
