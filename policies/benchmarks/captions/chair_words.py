"""Find the objects that a caption names: the words of a synonym list in English text.

There are two ways. `WordFinder` is the correct one: it looks up words and their plurals, formed once from the list ("bus" gives "buses"),
so no word that is already singular is changed. General singularisers do change such words: pattern's, which the public CHAIR code uses, and
`inflect` alike make "bu" of "bus" and "tenni" of "tennis". `PublishedFinder` repeats the public code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Protocol

Mention = tuple[str, str]
"""The word that was found and its category."""

_ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe")
_ANIMAL_QUALIFIERS = ("baby", "adult", "male", "female")
_VEHICLES = ("airplane", "train", "boat", "bus", "car")
_NO_OBJECT = ("home plate", "train track", "railroad track", "night stand")
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
_POSSESSIVE = re.compile(r"['\u2019]s$")

_IRREGULAR = {
    "child": "children", "grandchild": "grandchildren", "person": "people", "mouse": "mice", "goose": "geese", "ox": "oxen",
    "calf": "calves", "knife": "knives", "pocketknife": "pocketknives", "housewife": "housewives", "wife": "wives", "sheep": "sheep",
    "cattle": "cattle", "luggage": "luggage", "baggage": "baggage", "scissors": "scissors", "shears": "shears", "skis": "skis",
    "aircraft": "aircraft", "broccoli": "broccoli", "bison": "bison",
}  # fmt: skip
_MAN = re.compile(r"(?:^|wo|[a-z]{2,})man$")
_NO_MEN = ("human", "german", "roman")


class Finder(Protocol):
    """Finds the objects of a caption."""

    def find(self, caption: str) -> list[Mention]:
        """The mentions of a caption, in its order."""
        ...

    def category(self, name: str) -> str | None:
        """The category behind an annotated object's name; None for an unknown one."""
        ...


def parse_synonyms(text: str) -> list[list[str]]:
    """Parse a synonym list: a category per line, its name first, words separated by commas.

    Raises:
        ValueError: no line holds a word.
    """
    lists = [[word.strip() for word in line.split(",") if word.strip()] for line in text.splitlines()]
    found = [words for words in lists if words]
    if not found:
        raise ValueError("the synonym list is empty; expected a category a line, its name first, words separated by commas")
    return found


def plural(word: str) -> str:
    """The plural of a noun in the singular; of several words the last one changes."""
    head, _, last = word.rpartition(" ")
    if last in _IRREGULAR:
        changed = _IRREGULAR[last]
    elif _MAN.search(last) and not last.endswith(_NO_MEN):
        changed = last[:-2] + "en"
    elif last.endswith(("s", "x", "z", "ch", "sh")):
        changed = last + "es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        changed = last[:-1] + "ies"
    else:
        changed = last + "s"
    return f"{head} {changed}".strip()


class WordFinder:
    """Looks up words and their plurals, the longest first, ignoring case; hyphens may stand for the spaces of a word.

    "baby", "adult", "male" and "female" before an animal, and "passenger" before a vehicle, are no person; a toilet's seat is no chair.
    """

    def __init__(self, synonyms: Sequence[Sequence[str]]) -> None:
        """Args:
        synonyms: one list for each category, its name first.
        """
        known = {word.lower(): (word, words[0]) for words in reversed(synonyms) for word in words}
        known |= {words[0].lower(): (words[0], words[0]) for words in synonyms}
        phrases: dict[str, Mention | None] = {}
        qualified = [(_ANIMAL_QUALIFIERS, word) for words in synonyms if words[0] in _ANIMALS for word in words]
        qualified += [(("passenger",), word) for words in synonyms if words[0] in _VEHICLES for word in words]
        for qualifiers, word in qualified:
            phrases |= {f"{one} {word.lower()}": known[word.lower()] for one in qualifiers}
        phrases |= dict.fromkeys(f"{one} {animal}" for one in _ANIMAL_QUALIFIERS for animal in ("animal", "cub"))
        phrases |= dict.fromkeys(_NO_OBJECT)
        if "toilet" in known:
            phrases["toilet seat"] = known["toilet"]
        phrases |= known
        plurals = {plural(phrase): phrase for phrase in phrases}
        given = {many for many, one in plurals.items() if many in phrases and many != one}  # "children" has no plural of its own
        more = {many: phrases[one] for many, one in plurals.items() if one not in given}
        self._phrases = more | phrases  # a word of the list is itself, even where it is another's plural
        self._lengths: dict[str, list[int]] = {}
        for phrase in self._phrases:
            words = phrase.split(" ")
            lengths = self._lengths.setdefault(words[0], [])
            if len(words) not in lengths:
                lengths.append(len(words))
        for lengths in self._lengths.values():
            lengths.sort(reverse=True)

    def category(self, name: str) -> str | None:
        found = self._phrases.get(name.lower())
        return found[1] if found else None

    def find(self, caption: str) -> list[Mention]:
        words = [word for token in _WORD.findall(caption.lower()) for word in self._split(token)]
        found, at = [], 0
        while at < len(words):
            length = next((n for n in self._lengths.get(words[at], ()) if " ".join(words[at : at + n]) in self._phrases), 0)
            if length:
                found.append(self._phrases[" ".join(words[at : at + length])])
            at += length or 1
        mentions = [mention for mention in found if mention is not None]
        if any(category == "toilet" for _, category in mentions):
            mentions = [mention for mention in mentions if mention[0] != "seat"]
        return mentions

    def _split(self, token: str) -> list[str]:
        word = _POSSESSIVE.sub("", token)
        if "-" not in word or word in self._phrases:
            return [word]
        parts = word.split("-")
        return parts if " ".join(parts) in self._phrases else [word]


# ---- the public code's way

_DOUBLE_WORDS = (
    "motor bike", "motor cycle", "air plane", "traffic light", "street light", "traffic signal", "stop light", "fire hydrant", "stop sign",
    "parking meter", "suit case", "sports ball", "baseball bat", "baseball glove", "tennis racket", "wine glass", "hot dog", "cell phone",
    "mobile phone", "teddy bear", "hair drier", "potted plant", "laptop computer", "stove top oven", "home plate", "train track",
)  # fmt: skip
_APART = re.compile(
    r"[\[\](){}<>;@#$%&?!*\"\u201c\u201d\u201e\u00ab\u00bb\u2018\u2019]|--|\.{2,}|[:,](?!\d)"
    r"|\.(?=[\])}>\"'\u00bb\u201d\u2019]*(?:\s|$))"  # a full stop at the end of a sentence, before closing marks
)
_CLITIC = re.compile(r"(?<=[^' ])('(?:s|m|d|ll|re|ve)?|n't)(?=\s|$)")

_IRREGULAR_ENDS = {
    "children": "child", "people": "person", "geese": "goose", "teeth": "tooth", "oxen": "ox", "kine": "cow", "men": "man", "our": "my",
}  # fmt: skip
_ENDS = (
    (re.compile(r"(shoe|o(?=es)|bus(?=es)|x(?=es)|[cs]h(?=es)|ss(?=es))(?:e?s)$"), r"\1"),
    (re.compile(r"([m|l])ice$"), r"\1ouse"),
    (re.compile(r"([^aeiouy]|qu)ies$"), r"\1y"),
    (re.compile(r"([aeo]l|[^d]ea|ar|[lr])ves$"), r"\1f"),
    (re.compile(r"([nlw]i)ves$"), r"\1fe"),
    (re.compile(r"([aeo]|si|ti|hi)ves$"), r"\1ve"),
    (re.compile(r"([^f])ves$"), r"\1fe"),
    (re.compile(r"([cioprtv|])i$"), r"\1us"),
    (re.compile(r"s$"), ""),
)
_UNCHANGED = ("scissors", "shears", "doggies", "collies")


@lru_cache(maxsize=1 << 16)
def singular_published(word: str) -> str:
    """What pattern's `singularize` (clips/pattern) makes of a lower-case word, as far as CHAIR's list can tell."""
    if word in _UNCHANGED:
        return word
    for end, changed in _IRREGULAR_ENDS.items():
        if word.endswith(end):
            return word[: -len(end)] + changed
    for pattern, changed in _ENDS:
        if pattern.search(word):
            return pattern.sub(changed, word)
    return word


def tokens_published(text: str) -> list[str]:
    """Words and marks as NLTK's `word_tokenize` separates them, as far as CHAIR's list can tell."""
    return _CLITIC.sub(r" \1 ", _APART.sub(lambda mark: f" {mark[0]} ", text)).split()


class PublishedFinder:
    """LisaAnne/Hallucination's `utils/chair.py`: every word is made singular first, then double words, then the list."""

    def __init__(self, synonyms: Sequence[Sequence[str]]) -> None:
        """Args:
        synonyms: one list for each category, its name first; see `parse_synonyms_published`.
        """
        self._category = {word: words[0] for words in synonyms for word in words}
        self._double = {word: word for word in _DOUBLE_WORDS}
        self._double |= {f"{one} {animal}": animal for animal in (*_ANIMALS, "animal", "cub") for one in ("baby", "adult")}
        self._double |= {"passenger jet": "jet", "passenger train": "train"}
        self._double |= {"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"}

    def category(self, name: str) -> str | None:
        return self._category.get(name)

    def find(self, caption: str) -> list[Mention]:
        words = list(self._joined([singular_published(word) for word in tokens_published(caption.lower())]))
        if "toilet" in words and "seat" in words:
            words = [word for word in words if word != "seat"]
        return [(word, self._category[word]) for word in words if word in self._category]

    def _joined(self, words: list[str]) -> Iterator[str]:
        at = 0
        while at < len(words):
            double = self._double.get(" ".join(words[at : at + 2]))
            yield double or words[at]
            at += 2 if double else 1


def parse_synonyms_published(text: str) -> list[list[str]]:
    """A synonym list as the public code reads it: split at a comma and one space, so that a word after two spaces keeps one.

    Raises:
        ValueError: no line holds a word.
    """
    parse_synonyms(text)
    return [line.strip().split(", ") for line in text.splitlines() if line.strip()]
