"""The parser of all command lines."""

import argparse
import re
from typing import NoReturn

from ..names import nearest


class Parser(argparse.ArgumentParser):
    """``ArgumentParser`` that suggests the right name for a misspelled option or choice."""

    def error(self, message: str) -> NoReturn:
        words = message.partition('unrecognized arguments: ')[2].split()
        near = [name for word in words for name in nearest(word.partition('=')[0], self._option_string_actions)]
        if choice := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            near = nearest(choice[1], re.findall(r'[\w-]+', choice[2]))
        super().error(message + (f'; did you mean {", ".join(map(repr, near))}?' if near else ''))


def pair(parser: Parser, option: str, word: str, form: str = 'NEW=OLD') -> tuple[str, str]:
    """What stands before and after the last ``=`` of a word on the command line."""
    name, equals, value = word.rpartition('=')
    if not (name and equals and value):
        parser.error(f'{option} {word!r}: give {form}')
    return name, value


def add_trust(parser: Parser) -> None:
    """Add the option of all commands that open checkpoints."""
    parser.add_argument('--trust-checkpoints', action='store_true', help='open checkpoints even if they could run code')
