"""Questions about a scene of `shapes` and the program that answers them.

`ask` draws a question of a type; `truth` parses any question of this grammar, the model's own included, and returns the right answer, or
that the premise is false. Fourteen kinds of question, half of which the worlds share.
"""

from __future__ import annotations

import numpy as np

from loop.sources.shapes.scene import COLORS, POSITIONS, SHAPES, SIZES, Scene, Thing, pick
from loop.sources.worlds.grammar import Grammar, Kind, Premise, Truth, alternatives, any_of, conclusion, count_sentence
from loop.sources.worlds.grid import GridThing
from loop.sources.worlds.kinds import DETAIL_QUESTIONS, ask_pair, both, captions, description, shared_kinds, the
from policies.texts import with_article

__all__ = ["DETAIL_QUESTIONS", "GRAMMAR", "Premise", "Truth", "ask", "captions", "description", "is_correct", "truth"]


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
    """The one thing of that color or shape; otherwise the premise is false."""

    def fits(thing: GridThing) -> bool:
        assert isinstance(thing, Thing)
        return color in (None, thing.color) and shape in (None, thing.shape)

    found = the(scene, f"{color} object" if color else str(shape), fits)
    assert isinstance(found, Thing)
    return found


def _named(scene: Scene, name: str) -> Thing:
    found = the(scene, name)
    assert isinstance(found, Thing)
    return found


def _ask_count_color(scene: Scene, rng: np.random.Generator) -> str:
    color = pick(rng, scene.things).color if rng.random() < 0.8 else pick(rng, COLORS)
    return f"How many {color} objects are there?"


def _answer_count_color(scene: Scene, words: dict[str, str]) -> str:
    count = sum(thing.color == words["color"] for thing in scene.things)
    return count_sentence(count, f"{words['color']} object", f"{words['color']} objects")


def _answer_same_size(scene: Scene, words: dict[str, str]) -> str:
    first, second = both(scene, words)
    assert isinstance(first, Thing)
    assert isinstance(second, Thing)
    return f"The {first.name} is {first.size}. The {second.name} is {second.size}. {conclusion(holds=first.size == second.size)}"


def _answer_same_color(scene: Scene, words: dict[str, str]) -> str:
    first, second = _the(scene, shape=words["shape"]), _the(scene, shape=words["shape2"])
    return f"The {first.shape} is {first.color}. The {second.shape} is {second.color}. {conclusion(holds=first.color == second.color)}"


def _answer_more(scene: Scene, words: dict[str, str]) -> str:
    first, second = (sum(thing.size == words[key] for thing in scene.things) for key in ("size", "size2"))
    said = (count_sentence(count, f"{words[key]} object", f"{words[key]} objects") for count, key in ((first, "size"), (second, "size2")))
    return f"{' '.join(said)} {conclusion(holds=first > second)}"


def _ask_more(scene: Scene, rng: np.random.Generator) -> str:
    first, second = SIZES if rng.random() < 0.5 else SIZES[::-1]
    return f"Are there more {first} objects than {second} objects?"


def _shape_of(thing: GridThing) -> str:
    assert isinstance(thing, Thing)
    return thing.shape


_NAMES = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)
_WORDS = {"name": _NAMES, "color": COLORS, "shape": SHAPES, "size": SIZES, "position": POSITIONS}
_pattern = alternatives({word: any_of(options) for word, options in _WORDS.items()})
_SHARED = shared_kinds(_NAMES, _other_scene)
_KINDS: tuple[Kind[Scene], ...] = (
    Kind("color", "conversation", _pattern("What color is the {shape}?"),
         lambda scene, rng: f"What color is the {pick(rng, scene.things).shape}?",
         lambda scene, words: f"The {words['shape']} is {_the(scene, shape=words['shape']).color}."),
    Kind("shape", "conversation", _pattern("What shape is the {color} object?"),
         lambda scene, rng: f"What shape is the {pick(rng, scene.things).color} object?",
         lambda scene, words: f"The {words['color']} object is {with_article(_the(scene, color=words['color']).shape)}."),
    Kind("size", "conversation", _pattern("How large is the {name}?"),
         lambda scene, rng: f"How large is the {pick(rng, scene.things).name}?",
         lambda scene, words: f"The {words['name']} is {_named(scene, words['name']).size}."),
    _SHARED["where"],
    _SHARED["count"],
    Kind("count_color", "conversation", _pattern("How many {color} objects are there?"), _ask_count_color, _answer_count_color),
    _SHARED["exists"],
    _SHARED["at"],
    _SHARED["detail"],
    _SHARED["left"],
    _SHARED["above"],
    Kind("same_size", "complex", _pattern("Do the {name} and the {name2} have the same size?"),
         ask_pair("Do the {} and the {} have the same size?"), _answer_same_size),
    Kind("same_color", "complex", _pattern("Do the {shape} and the {shape2} have the same color?"),
         ask_pair("Do the {} and the {} have the same color?", key=_shape_of), _answer_same_color),
    Kind("more", "complex", _pattern("Are there more {size} objects than {size2} objects?"), _ask_more, _answer_more),
)  # fmt: skip

GRAMMAR = Grammar(_KINDS, _other_scene)
ask, truth, is_correct = GRAMMAR.ask, GRAMMAR.truth, GRAMMAR.is_correct
