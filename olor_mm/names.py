"""Suggestions for misspelled names."""

import difflib
from collections.abc import Collection


def nearest(name: str, known: Collection[str], number: int = 1) -> list[str]:
    """The known names most like a misspelled one, best first; an empty list if none is like it."""
    return difflib.get_close_matches(str(name), known, number)
