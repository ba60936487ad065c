"""Compare the statements of an answer about a scene with the truth, one by one.

`Grammar.is_correct` says whether an answer is exactly right; this says how much of it is. Objects are counted as in CHAIR
(Rohrbach et al. 2018, arXiv 1809.02156): those that an answer names as present, and those among them that are not. This only measures:
no policy sees it for generated records; for answers to acceptance questions the policy `evidence` sees whether an object is not there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from operator import add
from typing import Generic, TypeVar

from loop.sources.worlds.grammar import Grammar, Premise, any_of
from loop.sources.worlds.grid import GridScene, GridThing
from policies.correction.sentences import split_sentences

SceneT = TypeVar("SceneT", bound=GridScene)
_CONCLUSIONS = ("So yes.", "So no.")


@dataclass(frozen=True, slots=True)
class Claims:
    """Counts over one answer, or summed over many."""

    num_statements: int = 0
    """Sentences that state something of the world's grammar."""
    num_contradicted: int = 0
    """Statements that the scene, or for a conclusion the truth about the question, contradicts."""
    num_unreadable: int = 0
    """Sentences of no known form, including conclusions without a question to conclude on."""
    num_objects: int = 0
    """Mentions of an object as present, by what names it."""
    num_objects_not_there: int = 0
    """Mentions that match no object of the scene; wrong sizes and places are contradictions, not missing objects."""

    def __add__(self, other: Claims) -> Claims:
        return Claims(*map(add, astuple(self), astuple(other)))


@dataclass(frozen=True, slots=True)
class Form:
    """A form of statement: how it reads, when it holds, and whether it names its object as being there."""

    pattern: re.Pattern[str]
    holds: Callable[[GridScene, Mapping[str, str]], bool]
    names: bool = True


@dataclass(frozen=True)
class ClaimsReader(Generic[SceneT]):
    """Reads the statements of a world. The first form that matches a sentence counts."""

    grammar: Grammar[SceneT]
    forms: tuple[Form, ...]
    naming: tuple[str, ...]
    """Properties that name an object, such as color and shape."""

    def read(self, scene: SceneT, question: str, answer: str) -> Claims:
        """The claims of `answer` to `question`. Statements are read one by one, so that a wrong one does not affect the others."""
        total = Claims()
        for sentence in split_sentences(answer):
            total += self._conclusion(scene, question, sentence) if sentence in _CONCLUSIONS else self._statement(scene, sentence)
        return total

    def _conclusion(self, scene: SceneT, question: str, sentence: str) -> Claims:
        right = self.grammar.truth(scene, question)
        if right.premise is Premise.UNREADABLE or not right.answer.endswith(_CONCLUSIONS):
            # With a false premise nothing follows: either conclusion contradicts that there is none.
            return Claims(1, 1) if right.premise is Premise.FALSE else Claims(num_unreadable=1)
        return Claims(1, int(not right.answer.endswith(sentence)))

    def _statement(self, scene: SceneT, sentence: str) -> Claims:
        for form in self.forms:
            match = form.pattern.fullmatch(sentence)
            if match is not None:
                words = {name: word for name, word in match.groupdict().items() if word is not None}
                naming = {name: words[name] for name in self.naming if name in words}
                is_named = form.names and bool(naming)
                is_there = any(fits(thing, naming) for thing in scene.things)
                return Claims(1, int(not form.holds(scene, words)), 0, int(is_named), int(is_named and not is_there))
        return Claims(num_unreadable=1)


def form_of(
    template: str, words: Mapping[str, tuple[str, ...]], holds: Callable[[GridScene, Mapping[str, str]], bool], *, names: bool = True
) -> Form:
    """`{color}` in a template becomes a named group over `words["color"]`, `{color?}` one that may be missing with its space."""
    pattern = template
    for name, options in words.items():
        group = f"(?P<{name}>{any_of(options)})"
        pattern = pattern.replace(f"{{{name}?}} ", f"(?:{group} )?").replace(f"{{{name}}}", group)
    return Form(re.compile(pattern), holds, names)


def fits(thing: GridThing, words: Mapping[str, str]) -> bool:
    """Whether a thing has all of the properties."""
    return all(getattr(thing, name) == word for name, word in words.items())


def some(scene: GridScene, words: Mapping[str, str]) -> bool:
    """Whether a thing of the scene has the properties."""
    return _number(scene, words) > 0


def none(scene: GridScene, words: Mapping[str, str]) -> bool:
    """Whether no thing has them."""
    return _number(scene, words) == 0


def several(scene: GridScene, words: Mapping[str, str]) -> bool:
    """Whether more than one thing has them."""
    return _number(scene, words) > 1


def counted(scene: GridScene, words: Mapping[str, str]) -> bool:
    """Whether as many things as `count` says (`no` or a number) have the other properties."""
    count = 0 if words["count"] == "no" else int(words["count"])
    return _number(scene, {name: word for name, word in words.items() if name != "count"}) == count


def _number(scene: GridScene, words: Mapping[str, str]) -> int:
    return sum(fits(thing, words) for thing in scene.things)
