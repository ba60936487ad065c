"""Reading which of several lettered choices a free answer names."""

from __future__ import annotations

import re
from collections.abc import Sequence

from policies.reasoning import final_answer

_EDGES = " \t\r\n.,;:!?\"'`()[]{}*#"
_BARE = re.compile(r"\W*([A-Za-z])\W*")
_LEADING = re.compile(r"\s*(?:\(([A-Z])\)|\[([A-Z])\]|([A-Z])(?:\s*[.):](?=\s|$)|\s+is\b))")
_STATED = re.compile(r"\b(?:answer(?:\s+is|\s*:)\s*:?|(?:option|choice)(?:\s+is)?)[ \t]*[\"'(\[*]*([A-Z])(?![\w'])", re.IGNORECASE)
_LETTER = re.compile(r"(?<![\w'])([A-Z])(?![\w'])")
_WORDS = frozenset("AI")
"""Letters that are words of their own; within a sentence they name no choice."""


def read_option(answer: str, choices: Sequence[str]) -> int | None:
    """Index of the choice that a free answer names, or None where it names none or several.

    In order: a bare letter; the text of one choice; a letter that leads ("B. dog", "(B)", "B is") or is stated ("the answer is B"), when
    all such letters agree; the only lone capital letter but A and I, which are words; the only choice whose text stands in the answer as
    whole words. A letter beyond the choices is none.
    """
    answer = final_answer(answer)
    bare = _BARE.fullmatch(answer)
    if bare:
        return _index(bare[1].upper(), choices)
    said = _plain(answer)
    same = [index for index, choice in enumerate(choices) if _plain(choice) == said]
    if said and len(same) == 1:
        return same[0]
    named = set(_named(answer))
    if named:
        return _index(named.pop(), choices) if len(named) == 1 else None
    lone = set(_LETTER.findall(answer)) - _WORDS
    if len(lone) == 1:
        return _index(lone.pop(), choices)
    return _contained(said, [_plain(choice) for choice in choices])


def _named(answer: str) -> list[str]:
    leading = _LEADING.match(answer)
    stated = [letter for letter in _STATED.findall(answer) if letter.isupper()]
    return ([next(filter(None, leading.groups()))] if leading else []) + stated


def _contained(said: str, choices: Sequence[str]) -> int | None:
    """The only choice that stands in `said`; one within another that stands there does not count."""
    there = [index for index, choice in enumerate(choices) if choice and re.search(rf"(?<!\w){re.escape(choice)}(?!\w)", said)]
    longest = [i for i in there if not any(choices[i] != choices[j] and choices[i] in choices[j] for j in there)]
    return longest[0] if len(longest) == 1 else None


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).strip(_EDGES)


def _index(letter: str, choices: Sequence[str]) -> int | None:
    index = ord(letter) - ord("A")
    return index if 0 <= index < len(choices) else None
