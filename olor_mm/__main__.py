"""``python -m olor_mm list | init | train | test | print_rollback``"""

import argparse
import runpy
import sys

from . import __version__
from .cli import init, listing
from .cli.packaged import packaged

TOOLS = dict(
    train=('tools/train.py', 'train a config, as tools/train.py does'),
    test=('tools/test.py', 'evaluate a checkpoint, as tools/test.py does'),
    print_rollback=('tools/analysis_tools/print_rollback.py', 'print what rollback a config means, before training'),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog='python -m olor_mm', description='Fine-tuning with layer-wise rollback')
    parser.add_argument('--version', action='version', version=__version__)
    commands = parser.add_subparsers(dest='command', required=True)
    for name, (module, what) in dict(
        list=(listing, 'list optimizers, constructors, hooks, rules, fragments and configs'),
        init=(init, 'write a config that trains a stock model on a folder of data'),
    ).items():
        command = commands.add_parser(name, help=what, description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(main=module.main)
    for name, (_, what) in TOOLS.items():
        commands.add_parser(name, help=what, add_help=False)
    if sys.argv[1:2] and sys.argv[1] in TOOLS:
        tool = str(packaged(TOOLS[sys.argv[1]][0]))
        sys.argv = [tool, *sys.argv[2:]]  # they read their own arguments
        sys.path[0] = str(packaged('tools'))
        runpy.run_path(tool, run_name='__main__')
        return
    args = parser.parse_args()
    args.main(args)


if __name__ == '__main__':
    main()
