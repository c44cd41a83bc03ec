"""Names that were typed, and the right ones nearest to them."""

import argparse
import difflib
from collections.abc import Collection
from os.path import commonprefix
from typing import NoReturn


def nearest(key: str, known: Collection[str]) -> list[str]:
    """The known key that an unknown one may be a typing error of, or none."""
    key = str(key)
    one_edit = [one for one in known if _is_one_edit(key, one)]  # which difflib does not put first
    return one_edit[:1] or difflib.get_close_matches(key, known, n=1)


def _is_one_edit(a: str, b: str) -> bool:
    """Whether one letter put in, left out, changed, or swapped with the next makes one word the other."""
    start = len(commonprefix([a, b]))
    a, b = a[start:][::-1], b[start:][::-1]
    end = len(commonprefix([a, b]))
    a, b = a[end:], b[end:]
    return max(len(a), len(b)) < 2 or (len(a) == 2 and a == b[::-1])


class Parser(argparse.ArgumentParser):
    """A parser of command lines that answers a misspelled option with the right one."""

    def _get_values(self, action, arg_strings):
        # before Python 3.13 an option with the value '--' gets an empty list in place of it
        if action.option_strings and arg_strings == ['--']:
            self.error(f"argument {'/'.join(action.option_strings)}: '--' is no value; give another")
        return super()._get_values(action, arg_strings)

    def error(self, message: str) -> NoReturn:
        start, _, words = message.partition('unrecognized arguments: ')
        typed = [] if start else words.split()
        options = self._option_string_actions
        near = [name for word in typed for name in nearest(word.partition('=')[0], options) if name != word]
        hint = '' if ';' in message else '; --help says what to give'
        super().error(message + (f'; did you mean {", ".join(map(repr, near))}?' if near else hint))
