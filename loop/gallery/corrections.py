"""What a correction changed, word by word."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

_WORD = re.compile(r"\s*(?:[\u2e80-\u9fff\uf900-\ufaff]|\w+|[^\w\s])")
"""A word or a mark, with the white space before it. Characters of Chinese and Japanese count one by one."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive words with the same fate."""

    kind: Literal["same", "removed", "added"]
    text: str
    num_words: int


def segments(before: str, after: str) -> list[Segment]:
    """The words of both texts in reading order: what was removed comes before what was added in its place."""
    old, new = _WORD.findall(before), _WORD.findall(after)
    matcher = SequenceMatcher(None, [word.lstrip() for word in old], [word.lstrip() for word in new])
    found: list[Segment] = []
    for tag, old_start, old_end, new_start, new_end in matcher.get_opcodes():
        if tag == "equal":
            found.append(_segment("same", new[new_start:new_end]))
            continue
        if old_start < old_end:
            found.append(_segment("removed", old[old_start:old_end]))
        if new_start < new_end:
            found.append(_segment("added", new[new_start:new_end]))
    return found


def _segment(kind: Literal["same", "removed", "added"], words: list[str]) -> Segment:
    return Segment(kind, "".join(words), len(words))


def num_changed_words(before: str, after: str) -> int:
    """Different words that only one of the texts has; 0 if one is empty. A hundred times as fast as `segments`."""
    if before == after or not before or not after:
        return 0
    return len(set(before.split()) ^ set(after.split()))
