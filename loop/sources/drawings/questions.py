"""Questions about a scene of `drawings` and the program that answers them: twelve kinds, seven of which the worlds share."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from loop.sources.drawings.houses import Things
from loop.sources.drawings.scene import Drawn, Scene, thing_of
from loop.sources.worlds.grammar import Grammar, Kind, alternatives, any_of, conclusion, count_sentence
from loop.sources.worlds.grid import NUM_CELLS, POSITIONS, GridThing, pick
from loop.sources.worlds.kinds import ask_pair, shared_kinds, the, thing_at
from policies.texts import with_article


def plural(kind: str) -> str:
    """`animals`."""
    return f"{kind}s"


@lru_cache(maxsize=8)
def grammar_of(things: Things) -> Grammar[Scene]:
    """The questions about things of a folder."""

    def other_scene(scene: Scene, rng: np.random.Generator) -> Scene:
        """Shares some things and kinds with the real one, to ask plausible questions without a basis."""
        cells = rng.choice(NUM_CELLS, size=max(2, len(scene.things)), replace=False).tolist()
        return Scene(scene.image_id, scene.style, tuple(_variation(things, scene, cell, rng) for cell in sorted(cells)), scene.pixel_seed)

    def ask_count_kind(scene: Scene, rng: np.random.Generator) -> str:
        kind = pick(rng, scene.things).kind if rng.random() < 0.7 else pick(rng, things.all_kinds)
        return f"How many {plural(kind)} are there?"

    def ask_more(scene: Scene, rng: np.random.Generator) -> str | None:
        here = pick(rng, scene.things).kind
        others = [kind for kind in things.all_kinds if kind != here]
        if not others:
            return None
        first, second = (here, pick(rng, others)) if rng.random() < 0.5 else (pick(rng, others), here)
        return f"Are there more {plural(first)} than {plural(second)}?"

    kinds = {kind: plural(kind) for kind in things.all_kinds}
    pattern = alternatives({
        "kind": any_of(things.all_kinds), "kinds": any_of(tuple(kinds.values())), "position": any_of(POSITIONS),
    })  # fmt: skip
    shared = shared_kinds(things.names, other_scene)
    own: tuple[Kind[Scene], ...] = (
        Kind("name", "conversation", pattern("Which {kind} is there?"),
             lambda scene, rng: f"Which {pick(rng, scene.things).kind} is there?", _answer_name),
        Kind("kind", "conversation", pattern("What kind of object is at the {position}?"),
             lambda scene, rng: f"What kind of object is at the {pick(rng, scene.things).position}?",
             lambda scene, words: _kind_at(scene, words["position"])[1]),
        Kind("count_kind", "conversation", pattern("How many {kinds} are there?"), ask_count_kind,
             lambda scene, words: _counted(scene, words["kinds"])[1]),
        Kind("same_kind", "complex", pattern("Are the objects at the {position} and at the {position2} of the same kind?"),
             ask_pair("Are the objects at the {} and at the {} of the same kind?", key=lambda thing: thing.position), _answer_same_kind),
        Kind("more", "complex", pattern("Are there more {kinds} than {kinds2}?"), ask_more, _answer_more),
    )  # fmt: skip
    return Grammar((*own, *shared.values()), other_scene)


def _variation(things: Things, scene: Scene, cell: int, rng: np.random.Generator) -> Drawn:
    """A thing of the scene, or one of the same kind, or any."""
    real, draw = pick(rng, scene.things), rng.random()
    if draw < 0.35:
        return thing_of(things, real.number, cell)
    alike = [number for number, kind in enumerate(things.kinds) if kind == real.kind or draw > 0.7]
    return thing_of(things, pick(rng, alike), cell)


def _kind_of(thing: GridThing) -> str:
    assert isinstance(thing, Drawn)
    return thing.kind


def _answer_name(scene: Scene, words: dict[str, str]) -> str:
    found = the(scene, words["kind"], lambda thing: _kind_of(thing) == words["kind"])
    return f"The {words['kind']} is {with_article(found.name)}."


def _kind_at(scene: Scene, position: str) -> tuple[str, str]:
    """The kind of the thing in a cell, and the sentence that says it."""
    kind = _kind_of(thing_at(scene, position))
    return kind, f"The object at the {position} is {with_article(kind)}."


def _answer_same_kind(scene: Scene, words: dict[str, str]) -> str:
    (first, said), (second, also) = (_kind_at(scene, words[key]) for key in ("position", "position2"))
    return f"{said} {also} {conclusion(holds=first == second)}"


def _counted(scene: Scene, kinds: str) -> tuple[int, str]:
    """How many things of a kind, given by its plural, are there; and the sentence that says it."""
    count = sum(plural(thing.kind) == kinds for thing in scene.things)
    return count, count_sentence(count, kinds.removesuffix("s"), kinds)


def _answer_more(scene: Scene, words: dict[str, str]) -> str:
    (first, said), (second, also) = (_counted(scene, words[key]) for key in ("kinds", "kinds2"))
    return f"{said} {also} {conclusion(holds=first > second)}"
