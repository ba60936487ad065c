"""Kinds of question that every world has: whether and where a thing is, what is at a place, how many there are, a description, and which of
two things is further left or higher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from loop.sources.worlds.grammar import (
    FalsePremise,
    Kind,
    alternatives,
    any_of,
    capitalised,
    conclusion,
    count_sentence,
)
from loop.sources.worlds.grid import POSITIONS, GridScene, GridThing, pick
from policies.texts import with_article

SceneT = TypeVar("SceneT", bound=GridScene)

DETAIL_QUESTIONS = (
    "Describe the image in detail.",
    "What can be seen in the image?",
    "Give a detailed description of the image.",
    "Which objects are in the image and where are they?",
)


def shared_kinds(names: Sequence[str], other_scene: Callable[[SceneT, np.random.Generator], SceneT]) -> dict[str, Kind[SceneT]]:
    """The kinds that all worlds share, by name, for things with one of `names`."""
    word = {"name": any_of(tuple(names)), "position": any_of(POSITIONS)}
    pattern = alternatives(word)

    def ask_exists(scene: SceneT, rng: np.random.Generator) -> str:
        shown = scene if rng.random() < 0.5 else other_scene(scene, rng)
        return f"Is there {with_article(pick(rng, shown.things).name)}?"

    def ask_count(scene: SceneT, rng: np.random.Generator) -> str:
        return "How many objects are there?"

    kinds: list[Kind[SceneT]] = [
        Kind("where", "conversation", pattern("Where is the {name}?"),
             lambda scene, rng: f"Where is the {pick(rng, scene.things).name}?",
             lambda scene, words: _place(the(scene, words["name"]))),
        Kind("count", "conversation", pattern("How many objects are there?"), ask_count,
             lambda scene, words: count_sentence(len(scene.things), "object", "objects")),
        Kind("exists", "conversation", alternatives({**word, "an": "an?"})("Is there {an} {name}?"), ask_exists, _answer_exists),
        Kind("at", "conversation", pattern("What is at the {position}?"),
             lambda scene, rng: f"What is at the {pick(rng, scene.things).position}?", _answer_at),
        Kind("detail", "detail", alternatives({"detail": any_of(DETAIL_QUESTIONS)})("{detail}"),
             lambda scene, rng: pick(rng, DETAIL_QUESTIONS), lambda scene, words: description(scene)),
        Kind("left", "complex", pattern("Is the {name} to the left of the {name2}?"), ask_pair("Is the {} to the left of the {}?"),
             lambda scene, words: _compared(*both(scene, words), lambda thing: thing.column)),
        Kind("above", "complex", pattern("Is the {name} above the {name2}?"), ask_pair("Is the {} above the {}?"),
             lambda scene, words: _compared(*both(scene, words), lambda thing: thing.row)),
    ]  # fmt: skip
    return {kind.name: kind for kind in kinds}


def description(scene: GridScene) -> str:
    """One sentence per object in reading order: the answer to every question of type detail."""
    return " ".join(f"There is {with_article(thing.described)} at the {thing.position}." for thing in scene.things)


def captions(scene: GridScene) -> list[str]:
    """Three captions of growing detail, exact."""
    names = [with_article(thing.name) for thing in scene.things]
    listed = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    return [count_sentence(len(scene.things), "object", "objects"), f"{capitalised(listed)}.", description(scene)]


def the(scene: GridScene, name: str, fits: Callable[[GridThing], bool] | None = None) -> GridThing:
    """The one thing of that name, or the one that `fits`; otherwise the premise is false."""
    found = [thing for thing in scene.things if (thing.name == name if fits is None else fits(thing))]
    if not found:
        raise FalsePremise(f"There is no {name}.")
    if len(found) > 1:
        raise FalsePremise(f"There is more than one {name}.")
    return found[0]


def thing_at(scene: GridScene, position: str) -> GridThing:
    """The thing in a cell; otherwise the premise is false."""
    found = next((thing for thing in scene.things if thing.position == position), None)
    if found is None:
        raise FalsePremise(f"There is nothing at the {position}.")
    return found


def both(scene: GridScene, words: dict[str, str]) -> tuple[GridThing, GridThing]:
    """The two things of a comparison."""
    first = the(scene, words["name"])
    return first, the(scene, words["name2"])


def ask_pair(
    template: str, key: Callable[[GridThing], str] = lambda thing: thing.name
) -> Callable[[GridScene, np.random.Generator], str | None]:
    """A way to ask about two things of a scene that `key` calls differently."""

    def asks(scene: GridScene, rng: np.random.Generator) -> str | None:
        if len(scene.things) < 2:
            return None
        first, second = (scene.things[index] for index in rng.choice(len(scene.things), size=2, replace=False).tolist())
        return None if key(first) == key(second) else template.format(key(first), key(second))

    return asks


def _answer_exists(scene: GridScene, words: dict[str, str]) -> str:
    name = words["name"]
    here = any(thing.name == name for thing in scene.things)
    return f"Yes, there is {with_article(name)}." if here else f"No, there is no {name}."


def _answer_at(scene: GridScene, words: dict[str, str]) -> str:
    found = thing_at(scene, words["position"])
    return f"{capitalised(with_article(found.described))} is at the {found.position}."


def _place(thing: GridThing) -> str:
    return f"The {thing.name} is at the {thing.position}."


def _compared(first: GridThing, second: GridThing, key: Callable[[GridThing], int]) -> str:
    return f"{_place(first)} {_place(second)} {conclusion(holds=key(first) < key(second))}"
