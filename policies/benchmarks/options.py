# ruff: noqa: RUF001 (dashes and letters of other scripts are intended)
"""Find which of several lettered choices a free-form answer names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from policies.answers.mentions import (
    OUTSIDE,
    Mention,
    bare,
    is_denied,
    labelled_choices,
    letters,
    plain,
    reads_yes_no,
    texts,
)
from policies.answers.reasoning import final_answer
from policies.answers.yes_no import YES, parse_yes_no

_MAX_CHARACTERS = 4_000
"""Longest answer that is read completely; of a longer one only the beginning and the end."""
_BARE = re.compile(r"[\W_]*([A-Za-z])[\W_]*")
_YES_WORDS = frozenset(["yes", "true", "是", "有", "对"])
_JOINS = re.compile(
    r"[\s\"')\]]*(?:(?:,\s*)?(?:\b(?:or|and|and/or|as well as|oder|und|ou|et|или|и)\b|或者?|和|与|及|还是|または|と|또는|&)|[,/、+])"
    r"[\s\"'(\[]*(?:(?:also|maybe|possibly|either|the|an?|options?|choice|选项)\s+)*[\s\"'(\[]*",
    re.IGNORECASE,
)
_FOLLOWS_LETTER = re.compile(
    r"[\s.)\]:,;\"'(—–-]*(?:(?:is|which is|that is|namely|because|since|as)\s+)?(?:(?:it|this|that)\s*(?:is|'s|shows)\s+)?"
    r"(?:(?:the|an?)\s+)?[\"'(]*",
    re.IGNORECASE,
)
_FOLLOWS_TEXT = re.compile(
    r"[ \"',:;—–-]*(?:[(\[]\s*(?:(?:option|choice|answer)\s*)?|(?:which is )?(?:option|choice|answer)\s*[(\[]?\s*|[,:;=—–-]\s*)",
    re.IGNORECASE,
)
_LEADS_UP = re.compile(
    r"\W*(?:(?:well|ok|okay|sure|so|thus|therefore|hence|probably|likely|maybe|most likely)\b[\s,.:]*)*"
    r"(?:(?:(?:i (?:think|believe|guess|would say)|i'd say)(?: that)?|(?:it|this|that)(?: is|'s)|(?:they|these|those)(?: are|'re)|"
    r"probably|likely|most likely|definitely|clearly|options?|choice)\s+)*(?:我(?:认为|觉得|想)?\s*)?"
    r"(?:[这那它]\s*(?:应该)?是\s*)?(?:(?:the|an?)\s+)?\W*",
    re.IGNORECASE,
)
_ENDS = re.compile(
    r"[\])\"']*\s*(?:$|[\n.,;!。、—–-]|\b(?:because|since|as|due|given|so|for|though|although|but|while|whereas|which)\b|因为|因為)",
    re.IGNORECASE,
)
_CONCLUDES = re.compile(r"\b(?:so|thus|therefore|hence)\b[\s,]*(?:(?:it is|it's|the|an?|options?)\s+)*[(\[\"']*$", re.IGNORECASE)
_CLOSED = re.compile(r"[\])\"']*\s*(?:$|[\n.!])")
_LABEL = re.compile(r"\s*(?:[.):\],;—–-]|$|\n|\s(?:is|because|since|as)\b)")


@dataclass(frozen=True, slots=True)
class _Group:
    """Mentions that stand together: "B. dog", "red or blue"."""

    mentions: tuple[Mention, ...]

    @property
    def indices(self) -> frozenset[int]:
        return frozenset(one.index for one in self.mentions)

    @property
    def stated(self) -> bool:
        return any(one.stated for one in self.mentions)


def read_option(answer: str, choices: Sequence[str]) -> int | None:
    """Index of the choice that a free-form answer names, or None if it names none or several.

    Reasoning before the answer is removed. In order: a letter alone; the text of one choice alone; what is stated as the answer; what the
    answer begins with, whatever explains it afterwards; the only choice that is mentioned. Texts of choices are searched first: a letter
    within one ("Vitamin C") names nothing else. A denied choice ("not A") does not count. A letter next to the text of another choice,
    and a letter beyond the choices, name none.
    """
    text = plain(_bounded(final_answer(answer)))
    if not text:
        return None
    alone = _alone(text, choices)
    if alone is not None:
        return _only(alone)
    found = texts(text, choices)
    found = sorted([*found, *letters(text, choices, found)], key=lambda one: one.start)
    affirmed = [one for one in found if not is_denied(text, one, found)]
    groups = _without_list(text, _grouped(text, affirmed), choices)
    if not groups:
        return None if found else _yes_or_no(answer, choices)
    named, said = _named(text, groups, choices), _yes_or_no(answer, choices, in_sentences=False)
    return named if said in (None, named) else None


def _bounded(text: str) -> str:
    return text if len(text) <= _MAX_CHARACTERS else f"{text[: _MAX_CHARACTERS // 2]}\n{text[-_MAX_CHARACTERS // 2 :]}"


def _named(text: str, groups: Sequence[_Group], choices: Sequence[str]) -> int | None:
    """The choice that the mentions amount to."""
    stated = frozenset[int]().union(*(group.indices for group in groups if group.stated))
    first = _first(text, groups[0], choices)
    stated = stated or frozenset[int]().union(*(group.indices for group in groups if _is_concluded(text, group)))
    if stated:
        return _only(stated | (first or frozenset()))
    if first is not None:
        return _only(first)
    return _only(frozenset[int]().union(*(_meant(text, group, choices) for group in groups)))


def _alone(text: str, choices: Sequence[str]) -> frozenset[int] | None:
    """The choices named by an answer that consists only of a letter or a text."""
    said = bare(text)
    same = frozenset(index for index, choice in enumerate(choices) if said and bare(choice) == said)
    letter = _BARE.fullmatch(text)
    if letter:
        return same | {_index(letter[1], choices)}
    return same if len(same) == 1 else None


def _index(letter: str, choices: Sequence[str]) -> int:
    index = ord(letter.upper()) - ord("A")
    return index if index < len(choices) else OUTSIDE


def _only(indices: frozenset[int]) -> int | None:
    return next(iter(indices)) if len(indices) == 1 and OUTSIDE not in indices else None


def _grouped(text: str, mentions: Sequence[Mention]) -> list[_Group]:
    groups: list[list[Mention]] = []
    for one in mentions:
        if groups and _together(text, groups[-1][-1], one):
            groups[-1].append(one)
        else:
            groups.append([one])
    return [_Group(tuple(group)) for group in groups]


def _together(text: str, first: Mention, second: Mention) -> bool:
    between = text[first.end : second.start]
    if _JOINS.fullmatch(between):
        return True
    if first.by_letter == second.by_letter:
        return False
    return (_FOLLOWS_LETTER if first.by_letter else _FOLLOWS_TEXT).fullmatch(between) is not None


def _without_list(text: str, groups: list[_Group], choices: Sequence[str]) -> list[_Group]:
    """The groups without those that repeat the list of choices from A on."""
    labels = [group for group in groups if len(group.mentions) > 1 and group.mentions[0].by_letter and len(group.indices) == 1]
    order = [index for group in labels for index in group.indices]
    repeats = len(order) > 1 and order == list(range(len(order))) and not any(group.stated for group in labels)
    return [group for group in groups if group not in labels] if repeats else groups


def _is_concluded(text: str, group: _Group) -> bool:
    """Whether a clause says no more than "so B"."""
    start, end = group.mentions[0].start, group.mentions[-1].end
    return bool(_CONCLUDES.search(text[max(0, start - 40) : start]) and _CLOSED.match(text[end:]))


def _first(text: str, group: _Group, choices: Sequence[str]) -> frozenset[int] | None:
    """The choices at the beginning of an answer: a label, or a short statement that ends or is explained. None if there are none."""
    first, last = group.mentions[0], group.mentions[-1]
    if not _LEADS_UP.fullmatch(text[: first.start]) or re.match(r"[\])\"']*\s*\?", text[last.end :]):
        return None
    after = text[last.end :]
    if _ENDS.match(after) or (len(group.mentions) == 1 and first.by_letter and _LABEL.match(after)):
        return _meant(text, group, choices)
    return None


def _meant(text: str, group: _Group, choices: Sequence[str]) -> frozenset[int]:
    """The choices of a group. If choices end with letters ("sample B"), a letter in a sentence may mean either."""
    named = labelled_choices(choices)
    found = set(group.indices)
    for one in group.mentions:
        letter = text[one.start : one.end].upper()
        is_label = re.match(r"\s*[.):\]]|\s*$|\s*\n|\s+is (?:the )?(?:correct|right|best|answer)", text[one.end :])
        if one.by_letter and len(group.mentions) == 1 and letter in named and not is_label:
            found.add(named[letter])
    return frozenset(found)


def _yes_or_no(answer: str, choices: Sequence[str], in_sentences: bool = True) -> int | None:
    """The choice that an answer means, if the choices are a yes and a no."""
    if not reads_yes_no(choices):
        return None
    said = parse_yes_no(answer, in_sentences=in_sentences)
    if said is None:
        return None
    wanted = [bare(choice) in _YES_WORDS for choice in choices]
    names = [index for index, choice in enumerate(choices) if _is_yes_no(choice) and wanted[index] == (said == YES)]
    return names[0] if len(names) == 1 else None


def _is_yes_no(choice: str) -> bool:
    return reads_yes_no((choice, choice))
