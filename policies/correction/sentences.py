"""Split text into sentences, by own rules: a corrector decides on a prefix while the rest is not yet written, which libraries for
finished text do not support.

The rules, for a mark followed by white space (not needed after the marks of `_UNSPACED`):

- `!` and `?` end a sentence, and so does a `.` after an ordinary word. `3.5` and `a.b` have no white space, so they are not split.
- A `.` ends nothing after a title or `e.g.`, nor after a list number at the start (`1.`), nor after `No.` before a digit.
- After `etc.` and its like a lower-case word continues the sentence; after initials (`J.`, `U.S.`) any word does but a common
  first word of sentences (`The`, `It`).
- After an ellipsis, or closing quotes and brackets, a lower-case word continues the sentence.
- A line break ends a sentence: models do not wrap lines, they list items.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from policies.texts import word_set

# ruff: noqa: RUF001

_CLOSERS = "\"'”’)\\]}»」』）】》"
_UNSPACED = "。！？｡।॥؟۔"
"""Marks that end a sentence whatever follows: in scripts that write no space after them, or have no other use for them."""
_BOUNDARY = re.compile(rf"(?P<mark>[.!?…{_UNSPACED}]+)(?P<closers>[{_CLOSERS}]*)|\n")
_OPENERS = "\"'“‘([{«「『（【《"
_INITIALS = re.compile(r"[A-Z]|(?:[A-Za-z]{1,2}\.)+[A-Za-z]{1,2}")
_NEXT_WORD = re.compile(r"[\W_]*(?P<word>\w+)")


_NEVER_FINAL = word_set("mr mrs ms dr prof rev gen col capt lt sgt hon messrs mme mlle e.g i.e eg ie vs cf viz approx")
_BEFORE_NUMBERS = word_set("no nos fig figs p pp vol vols eq eqs sec ch nr ca")
_BEFORE_LOWER_CASE = word_set("etc inc ltd co corp jr sr dept ave blvd rd al bros est min max")
_BEFORE_NAMES = word_set("st mt ft")
_FIRST_WORDS = word_set(
    "a an the this that these those there here it its he his she her they their we our you your i my in on at by for from with as "
    "if when while where what who why how which is are was were do does did so but and or yes no not both all some each every one "
    "two three four many most several another other behind above below next to near under however also then overall"
)


def split_sentences(text: str, *, final: bool = True) -> list[str]:
    """The sentences of `text`, white space normalised; without `final`, only those that later text cannot change.

    Joined by a space, the sentences of a final text are the white-space-normalised text again, but for a space after a
    mark of `_UNSPACED` that had none.
    """
    sentences = []
    while (end := first_sentence_end(text, final=final)) is not None:
        sentences.append(" ".join(text[:end].split()))
        text = text[end:]
    return sentences


LONGEST_CYCLE = 3
"""Length in sentences of the longest loop to detect: a model that repeats itself repeats one to three sentences."""


def repeats(sentence: str, said: Sequence[str]) -> bool:
    """Whether `sentence` starts a loop: it is one of the last `LONGEST_CYCLE` sentences said."""
    return sentence in said[-LONGEST_CYCLE:]


def first_sentence_end(text: str, *, final: bool) -> int | None:
    """Index just after the first sentence of `text`, its closing quotes and brackets included.

    None if the text so far does not decide it: a result for a prefix stays right whatever follows. With `final` nothing follows, so
    any remaining text is a sentence; None then means that the text is blank.
    """
    start = len(text) - len(text.lstrip())
    for match in _BOUNDARY.finditer(text, start):
        ends = _ends(text, start, match, final)
        if ends:
            return len(text[: match.end()].rstrip())
        if ends is None:
            return None
    return len(text.rstrip()) if final and start < len(text) else None


def _ends(text: str, start: int, match: re.Match[str], final: bool) -> bool | None:
    """Whether the sentence from `start` ends at a boundary; None if that depends on text still to come."""
    mark, rest = match["mark"], text[match.end() :]
    following = rest.lstrip()
    if mark is None or (final and not following):
        return True
    if not rest:
        return None
    if mark[-1] in _UNSPACED:
        return True
    if not rest[0].isspace():
        return False
    if "\n" in rest[: len(rest) - len(following)]:
        return True
    if match["closers"] or mark.endswith(("..", "…")):
        return not following[0].islower() if following else None
    return mark != "." or _period_ends(text[start : match.start()], following, final)


def _period_ends(before: str, following: str, final: bool) -> bool | None:
    """Whether a `.` ends the sentence that reads `before` up to it, when white space and then `following` come after it."""
    words = before.rsplit(maxsplit=1)
    word = words[-1].lstrip(_OPENERS) if words else ""
    lower = word.lower()
    is_list_marker = len(words) == 1 and (word.isdecimal() or (len(word) == 1 and word.isalpha()))
    if is_list_marker or lower in _NEVER_FINAL:
        return False
    if lower in _BEFORE_NUMBERS:
        return not following[0].isdecimal() if following else None
    if lower in _BEFORE_LOWER_CASE:
        return not following[0].islower() if following else None
    if lower in _BEFORE_NAMES or _INITIALS.fullmatch(word):
        return _starts_sentence(following, final)
    return True


def _starts_sentence(following: str, final: bool) -> bool | None:
    """Whether the next word is a common first word of sentences, capitalised; None until the word is complete."""
    match = _NEXT_WORD.match(following)
    if match is None or (match.end() == len(following) and not final):
        return False if final else None
    word = match["word"]
    return word[0].isupper() and word.lower() in _FIRST_WORDS
