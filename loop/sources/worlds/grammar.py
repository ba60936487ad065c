"""The grammar of a world: kinds of question, each a regular expression, a way to ask and a way to answer.

`Grammar.ask` draws a question of a type; `Grammar.truth` parses any question of the grammar, the model's own included, and returns the
right answer, or that the premise is false.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

import numpy as np

from loop.sources.worlds.grid import GridScene

SceneT = TypeVar("SceneT", bound=GridScene)

_ATTEMPTS = 6
"""Rounds through the kinds of a type before any question of it will do (detail has none with a false premise)."""


class Premise(StrEnum):
    """Whether the scene supports what a question presupposes."""

    TRUE = "true"
    FALSE = "false"
    UNREADABLE = "unreadable"  # not a question of this grammar


@dataclass(frozen=True, slots=True)
class Truth:
    """The right answer to a question. With a false premise `answer` says so; for an unreadable question it is empty."""

    premise: Premise
    answer: str
    kind: str = ""


class FalsePremise(Exception):
    """Raised by an answer function; its text is the right reply."""


@dataclass(frozen=True, slots=True)
class Kind(Generic[SceneT]):
    """A kind of question: how it reads, how it is asked about a scene (None if the scene has no such question), and its answer."""

    name: str
    type: str
    pattern: re.Pattern[str]
    ask: Callable[[SceneT, np.random.Generator], str | None]
    answer: Callable[[SceneT, dict[str, str]], str]
    """From the scene and the named groups of the pattern; raises `FalsePremise`."""


@dataclass(frozen=True)
class Grammar(Generic[SceneT]):
    """The questions of a world."""

    kinds: tuple[Kind[SceneT], ...]
    """Every type of question has one that any scene can be asked."""
    other_scene: Callable[[SceneT, np.random.Generator], SceneT]
    """A scene that shares some properties with the given one, to ask plausible questions without a basis."""

    def ask(self, scene: SceneT, question_type: str, rng: np.random.Generator, *, false_premise: bool = False) -> str:
        """A question of `question_type` (conversation, detail, complex) about the scene.

        With `false_premise` it is a question that the scene does not support, if the drawn kind has one.
        """
        kinds = [kind for kind in self.kinds if kind.type == question_type]
        if not kinds:
            raise ValueError(f"unknown question type {question_type!r}; expected one of {sorted({kind.type for kind in self.kinds})}")
        wanted = Premise.FALSE if false_premise else Premise.TRUE
        questions = []
        for _ in range(_ATTEMPTS):
            for index in rng.permutation(len(kinds)).tolist():
                subject = self.other_scene(scene, rng) if false_premise else scene
                question = kinds[index].ask(subject, rng)
                if question is not None:
                    if self.truth(scene, question).premise is wanted:
                        return question
                    questions.append(question)
        return questions[0]

    def truth(self, scene: SceneT, question: str) -> Truth:
        """The right answer to `question` about `scene`, or what is wrong with the question."""
        for kind in self.kinds:
            match = kind.pattern.fullmatch(question)
            if match is not None:
                try:
                    return Truth(Premise.TRUE, kind.answer(scene, match.groupdict()), kind.name)
                except FalsePremise as reply:
                    return Truth(Premise.FALSE, str(reply), kind.name)
        return Truth(Premise.UNREADABLE, "")

    def is_correct(self, scene: SceneT, question: str, answer: str) -> bool:
        """Whether `answer` is exactly right (up to white space) and the question's premise holds."""
        right = self.truth(scene, question)
        return right.premise is Premise.TRUE and " ".join(answer.split()) == right.answer


def alternatives(words: Mapping[str, str]) -> Callable[[str], re.Pattern[str]]:
    """A function from a template to its pattern: `{color2}` becomes a named group over `words["color"]`, the rest is literal."""

    def pattern(template: str) -> re.Pattern[str]:
        parts = re.split(r"\{(\w+)\}", template)
        groups = (f"(?P<{part}>{words[part.rstrip('2')]})" if i % 2 else re.escape(part) for i, part in enumerate(parts))
        return re.compile("".join(groups))

    return pattern


def any_of(words: tuple[str, ...]) -> str:
    """A regular expression that matches one of the words."""
    return "|".join(map(re.escape, words))


def count_sentence(count: int, one: str, many: str) -> str:
    """`There are no rings.`, `There is 1 ring.`, `There are 2 rings.`"""
    return f"There are no {many}." if count == 0 else f"There is 1 {one}." if count == 1 else f"There are {count} {many}."


def conclusion(*, holds: bool) -> str:
    """`So yes.` or `So no.`"""
    return "So yes." if holds else "So no."


def capitalised(text: str) -> str:
    """The text with its first letter in upper case."""
    return f"{text[0].upper()}{text[1:]}"
