"""Commands of ``python -m olor_mm``, run in this process."""

import sys

from olor_mm.__main__ import main


def init(*arguments) -> None:
    """``python -m olor_mm init`` in this process."""
    before = sys.argv
    sys.argv = ['olor_mm', 'init', *map(str, arguments)]
    try:
        main()
    finally:
        sys.argv = before
