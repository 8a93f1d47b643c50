"""Errors a user can mend: one clear line, exit status 2, no traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A line for the user: names the file, the key and what was expected."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """End a line about a wrong name: the nearest choice, or all of them where none is near."""
    choices = sorted(choices)
    near = difflib.get_close_matches(word, choices, n=1)
    if near:
        return f" (did you mean '{near[0]}'?)"
    return f" (choose from {', '.join(choices)})" if choices else ""
