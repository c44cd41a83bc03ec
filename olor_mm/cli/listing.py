"""List all that a config can name, with what it does."""

import inspect
import json
import re
from itertools import takewhile

from .. import durable, engine  # noqa: F401  they register their hooks
from ..optim.rules import RULES
from ..registry import HOOKS, OPTIM_WRAPPER_CONSTRUCTORS, OPTIMIZERS, RENAMED
from .packaged import packaged
from .parser import Parser

KINDS = ('optimizers', 'constructors', 'hooks', 'rules', 'fragments', 'configs')


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument('kinds', nargs='*', metavar='KIND', help=f'{", ".join(KINDS)} (default: all)')
    parser.add_argument('--json', action='store_true', help='print JSON')
    args = parser.parse_args()
    for kind in args.kinds:
        if kind not in KINDS:
            parser.error(f'{kind!r} is none of {", ".join(KINDS)}')
    found = {kind: entries for kind, entries in everything().items() if kind in (args.kinds or KINDS)}
    if args.json:
        print(json.dumps(found, indent=2))
        return
    for kind, entries in found.items():
        width = max(map(len, entries))
        print(kind, *(f'  {name:{width}}  {what}' for name, what in entries.items()), '', sep='\n')


def everything() -> dict[str, dict[str, str]]:
    """Name and description of all there is, by kind: one of :data:`KINDS`."""
    members = dict(
        optimizers=OPTIMIZERS.module_dict,
        constructors=OPTIM_WRAPPER_CONSTRUCTORS.module_dict,
        hooks={name: hook for name, hook in HOOKS.module_dict.items() if name not in RENAMED},
        rules=RULES,
    )
    found: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}
    for kind, items in members.items():
        found[kind] = {name: _first_sentence(item.__doc__) for name, item in sorted(items.items())}
    configs = packaged('configs')
    for file in sorted(configs.rglob('*.py')):
        comment = takewhile(lambda line: line.startswith('# '), file.read_text().splitlines())
        name = f'olor_mm::{file.relative_to(configs).as_posix()}'
        kind = 'fragments' if '_base_' in file.parts else 'configs'
        found[kind][name] = _first_sentence(' '.join(line[2:] for line in comment))
    return found


def _first_sentence(doc: str | None) -> str:
    text = ' '.join(inspect.cleandoc(doc or '').partition('\n\n')[0].split())
    text = re.sub(r':\w+:`~?([^`]*)`|``([^`]*)``', lambda match: match[1] or match[2], text)
    return re.split(r'(?<=[a-z0-9)])\. ', text)[0].rstrip('.')
