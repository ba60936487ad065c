"""Checks of policy options: what was given, what was expected, as a `ValueError`."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Sequence


def did_you_mean(given: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`; did you mean 'x'?` if a known name is close to what was given, else empty."""
    close = difflib.get_close_matches(given, [*known], 1, cutoff)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_at_least(name: str, value: float, minimum: float) -> None:
    """Raise unless `value` is a finite number of at least `minimum`."""
    if not math.isfinite(value) or value < minimum:
        raise ValueError(f"{name} is {value}; expected {minimum} or more")


def check_at_most(name: str, value: float, maximum: float) -> None:
    """Raise unless `value` is a finite number of at most `maximum`."""
    if not math.isfinite(value) or value > maximum:
        raise ValueError(f"{name} is {value}; expected {maximum} or less")


def check_share(name: str, value: float, *, allow_zero: bool = True) -> None:
    """Raise unless `value` lies in 0..1, or above 0 and up to 1 without `allow_zero`."""
    if not 0.0 <= value <= 1.0 or (value == 0.0 and not allow_zero):
        raise ValueError(f"{name} is {value}; expected a share {'from 0' if allow_zero else 'above 0 and up'} to 1")


def check_range(name: str, minimum: int, maximum: int) -> None:
    """Raise unless 0 <= `minimum` <= `maximum`."""
    if not 0 <= minimum <= maximum:
        raise ValueError(f"min_{name} is {minimum} and max_{name} is {maximum}; expected 0 <= min_{name} <= max_{name}")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {list(choices)}{did_you_mean(str(value), choices)}")


def check_texts(name: str, value: Sequence[str]) -> None:
    """Raise for a single string in place of a list of strings: Python would treat its letters as the list."""
    if isinstance(value, str):
        raise ValueError(f"{name} is the text {value!r}; expected a list of texts, such as [{value!r}]")


def any_of(name: str, patterns: Sequence[str]) -> re.Pattern[str]:
    """One case-insensitive pattern that matches wherever one of `patterns` does; without patterns it never matches.

    Raises:
        ValueError: an entry is not a regular expression.
    """
    check_texts(name, patterns)
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{name} holds {pattern!r}, which is not a regular expression: {error}") from error
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns) or r"(?!)", re.IGNORECASE)
