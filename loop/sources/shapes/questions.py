"""Questions about a scene and the program that answers them.

`ask` draws a question of a type; `truth` parses any question of this grammar, the model's own included, and returns the right answer, or
that the premise is false. Fourteen kinds of question, each a regular expression, a way to ask and a way to answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from loop.sources.shapes.scene import COLORS, POSITIONS, SHAPES, SIZES, Scene, Thing, pick
from policies.texts import with_article


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


_ATTEMPTS = 6
"""Rounds through the kinds of a type before any question of it will do (detail has none with a false premise)."""


class _FalsePremise(Exception):
    """Raised by an answer function; its text is the right reply."""


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    type: str
    pattern: re.Pattern[str]
    ask: Callable[[Scene, np.random.Generator], str | None]
    answer: Callable[[Scene, dict[str, str]], str]


def ask(scene: Scene, question_type: str, rng: np.random.Generator, *, false_premise: bool = False) -> str:
    """A question of `question_type` (conversation, detail, complex) about the scene.

    With `false_premise` it is a question that the scene does not support, if the drawn kind has one.
    """
    kinds = [kind for kind in _KINDS if kind.type == question_type]
    if not kinds:
        raise ValueError(f"unknown question type {question_type!r}; expected one of {sorted({kind.type for kind in _KINDS})}")
    wanted = Premise.FALSE if false_premise else Premise.TRUE
    questions = []
    for _ in range(_ATTEMPTS):
        for index in rng.permutation(len(kinds)).tolist():
            subject = _other_scene(scene, rng) if false_premise else scene
            question = kinds[index].ask(subject, rng)
            if question is not None:
                if truth(scene, question).premise is wanted:
                    return question
                questions.append(question)
    return questions[0]  # every type has a kind that any scene can be asked


def truth(scene: Scene, question: str) -> Truth:
    """The right answer to `question` about `scene`, or what is wrong with the question."""
    for kind in _KINDS:
        match = kind.pattern.fullmatch(question)
        if match is not None:
            try:
                return Truth(Premise.TRUE, kind.answer(scene, match.groupdict()), kind.name)
            except _FalsePremise as reply:
                return Truth(Premise.FALSE, str(reply), kind.name)
    return Truth(Premise.UNREADABLE, "")


def is_correct(scene: Scene, question: str, answer: str) -> bool:
    """Whether `answer` is exactly right (up to white space) and the question's premise holds."""
    right = truth(scene, question)
    return right.premise is Premise.TRUE and " ".join(answer.split()) == right.answer


def description(scene: Scene) -> str:
    """One sentence per object in reading order: the answer to every question of type detail."""
    return " ".join(f"There is {with_article(_full(thing))} at the {thing.position}." for thing in scene.things)


def captions(scene: Scene) -> list[str]:
    """Three captions of growing detail, exact."""
    names = [with_article(f"{thing.color} {thing.shape}") for thing in scene.things]
    listed = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    return [_count_sentence(len(scene.things), "object", "objects"), f"{listed[0].upper()}{listed[1:]}.", description(scene)]


def _full(thing: Thing) -> str:
    return f"{thing.size} {thing.color} {thing.shape}"


def _other_scene(scene: Scene, rng: np.random.Generator) -> Scene:
    """A scene that shares some properties with the real one, to ask plausible questions without a basis."""
    cells = rng.choice(9, size=max(2, len(scene.things)), replace=False).tolist()
    things = []
    for cell in sorted(cells):
        real = pick(rng, scene.things)
        shape = real.shape if rng.random() < 0.4 else pick(rng, SHAPES)
        color = real.color if rng.random() < 0.4 else pick(rng, COLORS)
        things.append(Thing(cell, shape, color, pick(rng, SIZES)))
    return Scene(scene.image_id, scene.shift, tuple(things), scene.pixel_seed)


def _the(scene: Scene, *, color: str | None = None, shape: str | None = None) -> Thing:
    """The one thing of that color and shape; otherwise the premise is false."""
    name = f"{color} {shape or 'object'}" if color else str(shape)
    found = [thing for thing in scene.things if color in (None, thing.color) and shape in (None, thing.shape)]
    if not found:
        raise _FalsePremise(f"There is no {name}.")
    if len(found) > 1:
        raise _FalsePremise(f"There is more than one {name}.")
    return found[0]


def _name(thing: Thing) -> str:
    return f"{thing.color} {thing.shape}"


def _pair(scene: Scene, rng: np.random.Generator) -> tuple[Thing, Thing] | None:
    if len(scene.things) < 2:
        return None
    first, second = rng.choice(len(scene.things), size=2, replace=False).tolist()
    return scene.things[first], scene.things[second]


def _count_sentence(count: int, one: str, many: str) -> str:
    return f"There are no {many}." if count == 0 else f"There is 1 {one}." if count == 1 else f"There are {count} {many}."


def _so(holds: bool) -> str:
    return "So yes." if holds else "So no."


def _ask_exists(scene: Scene, rng: np.random.Generator) -> str:
    shown = scene if rng.random() < 0.5 else _other_scene(scene, rng)
    return f"Is there {with_article(_name(pick(rng, shown.things)))}?"


def _answer_exists(scene: Scene, words: dict[str, str]) -> str:
    here = any(thing.color == words["color"] and thing.shape == words["shape"] for thing in scene.things)
    name = f"{words['color']} {words['shape']}"
    return f"Yes, there is {with_article(name)}." if here else f"No, there is no {name}."


def _answer_at(scene: Scene, words: dict[str, str]) -> str:
    found = [thing for thing in scene.things if thing.position == words["position"]]
    if not found:
        raise _FalsePremise(f"There is nothing at the {words['position']}.")
    sentence = f"{with_article(_full(found[0]))} is at the {words['position']}."
    return sentence[0].upper() + sentence[1:]


def _ask_count_color(scene: Scene, rng: np.random.Generator) -> str:
    color = pick(rng, scene.things).color if rng.random() < 0.8 else pick(rng, COLORS)
    return f"How many {color} objects are there?"


def _answer_count_color(scene: Scene, words: dict[str, str]) -> str:
    count = sum(thing.color == words["color"] for thing in scene.things)
    return _count_sentence(count, f"{words['color']} object", f"{words['color']} objects")


def _ask_pair(template: str, key: Callable[[Thing], str] = _name) -> Callable[[Scene, np.random.Generator], str | None]:
    def asks(scene: Scene, rng: np.random.Generator) -> str | None:
        pair = _pair(scene, rng)
        return None if pair is None or key(pair[0]) == key(pair[1]) else template.format(key(pair[0]), key(pair[1]))

    return asks


def _both(scene: Scene, words: dict[str, str]) -> tuple[Thing, Thing]:
    first = _the(scene, color=words["color"], shape=words["shape"])
    return first, _the(scene, color=words["color2"], shape=words["shape2"])


def _places(first: Thing, second: Thing) -> str:
    return f"The {_name(first)} is at the {first.position}. The {_name(second)} is at the {second.position}."


def _answer_left(scene: Scene, words: dict[str, str]) -> str:
    first, second = _both(scene, words)
    return f"{_places(first, second)} {_so(first.column < second.column)}"


def _answer_above(scene: Scene, words: dict[str, str]) -> str:
    first, second = _both(scene, words)
    return f"{_places(first, second)} {_so(first.row < second.row)}"


def _answer_same_size(scene: Scene, words: dict[str, str]) -> str:
    first, second = _both(scene, words)
    return f"The {_name(first)} is {first.size}. The {_name(second)} is {second.size}. {_so(first.size == second.size)}"


def _answer_same_color(scene: Scene, words: dict[str, str]) -> str:
    first, second = _the(scene, shape=words["shape"]), _the(scene, shape=words["shape2"])
    return f"The {first.shape} is {first.color}. The {second.shape} is {second.color}. {_so(first.color == second.color)}"


def _answer_more(scene: Scene, words: dict[str, str]) -> str:
    first, second = (sum(thing.size == words[key] for thing in scene.things) for key in ("size", "size2"))
    said = (_count_sentence(count, f"{words[key]} object", f"{words[key]} objects") for count, key in ((first, "size"), (second, "size2")))
    return f"{' '.join(said)} {_so(first > second)}"


def _ask_more(scene: Scene, rng: np.random.Generator) -> str:
    first, second = SIZES if rng.random() < 0.5 else SIZES[::-1]
    return f"Are there more {first} objects than {second} objects?"


DETAIL_QUESTIONS = (
    "Describe the image in detail.",
    "What can be seen in the image?",
    "Give a detailed description of the image.",
    "Which objects are in the image and where are they?",
)
_WORDS = {
    "color": "|".join(COLORS),
    "shape": "|".join(SHAPES),
    "size": "|".join(SIZES),
    "position": "|".join(POSITIONS),
}


def _pattern(template: str) -> re.Pattern[str]:
    """`{color2}` in a template becomes a named group over the colors; everything else is literal."""
    parts = re.split(r"\{(\w+)\}", template)
    groups = (f"(?P<{part}>{_WORDS[part.rstrip('2')]})" if i % 2 else re.escape(part) for i, part in enumerate(parts))
    return re.compile("".join(groups))


_KINDS = (
    _Kind("color", "conversation", _pattern("What color is the {shape}?"),
          lambda scene, rng: f"What color is the {pick(rng, scene.things).shape}?",
          lambda scene, words: f"The {words['shape']} is {_the(scene, shape=words['shape']).color}."),
    _Kind("shape", "conversation", _pattern("What shape is the {color} object?"),
          lambda scene, rng: f"What shape is the {pick(rng, scene.things).color} object?",
          lambda scene, words: f"The {words['color']} object is {with_article(_the(scene, color=words['color']).shape)}."),
    _Kind("size", "conversation", _pattern("How large is the {color} {shape}?"),
          lambda scene, rng: f"How large is the {_name(pick(rng, scene.things))}?",
          lambda scene, words: f"The {words['color']} {words['shape']} is {_the(scene, **words).size}."),
    _Kind("where", "conversation", _pattern("Where is the {color} {shape}?"),
          lambda scene, rng: f"Where is the {_name(pick(rng, scene.things))}?",
          lambda scene, words: f"The {words['color']} {words['shape']} is at the {_the(scene, **words).position}."),
    _Kind("count", "conversation", _pattern("How many objects are there?"),
          lambda scene, rng: "How many objects are there?",
          lambda scene, words: _count_sentence(len(scene.things), "object", "objects")),
    _Kind("count_color", "conversation", _pattern("How many {color} objects are there?"), _ask_count_color, _answer_count_color),
    _Kind("exists", "conversation", re.compile(f"Is there an? (?P<color>{_WORDS['color']}) (?P<shape>{_WORDS['shape']})\\?"),
          _ask_exists, _answer_exists),
    _Kind("at", "conversation", _pattern("What is at the {position}?"),
          lambda scene, rng: f"What is at the {pick(rng, scene.things).position}?", _answer_at),
    _Kind("detail", "detail", re.compile("|".join(map(re.escape, DETAIL_QUESTIONS))),
          lambda scene, rng: pick(rng, DETAIL_QUESTIONS), lambda scene, words: description(scene)),
    _Kind("left", "complex", _pattern("Is the {color} {shape} to the left of the {color2} {shape2}?"),
          _ask_pair("Is the {} to the left of the {}?"), _answer_left),
    _Kind("above", "complex", _pattern("Is the {color} {shape} above the {color2} {shape2}?"),
          _ask_pair("Is the {} above the {}?"), _answer_above),
    _Kind("same_size", "complex", _pattern("Do the {color} {shape} and the {color2} {shape2} have the same size?"),
          _ask_pair("Do the {} and the {} have the same size?"), _answer_same_size),
    _Kind("same_color", "complex", _pattern("Do the {shape} and the {shape2} have the same color?"),
          _ask_pair("Do the {} and the {} have the same color?", key=lambda thing: thing.shape), _answer_same_color),
    _Kind("more", "complex", _pattern("Are there more {size} objects than {size2} objects?"), _ask_more, _answer_more),
)  # fmt: skip
