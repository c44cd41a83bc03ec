"""The parser of all command lines."""

import argparse
from typing import NoReturn

from ..names import nearest


class Parser(argparse.ArgumentParser):
    """``ArgumentParser`` that suggests the right name for a misspelled option."""

    def error(self, message: str) -> NoReturn:
        words = message.partition('unrecognized arguments: ')[2].split()
        near = [name for word in words for name in nearest(word.partition('=')[0], self._option_string_actions)]
        super().error(message + (f'; did you mean {", ".join(map(repr, near))}?' if near else ''))


def add_trust(parser: Parser) -> None:
    """Add the option of all commands that open checkpoints."""
    parser.add_argument('--trust-checkpoints', action='store_true', help='open checkpoints even if they could run code')
