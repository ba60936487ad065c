"""The statements of an answer about a scene of `drawings`, held against the truth; see `loop.sources.worlds.claims`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

from loop.sources.drawings.houses import Things
from loop.sources.drawings.questions import grammar_of
from loop.sources.drawings.scene import Scene
from loop.sources.worlds.claims import ClaimsReader, Form, counted, form_of, none, several, some
from loop.sources.worlds.grid import POSITIONS, GridScene


@lru_cache(maxsize=8)
def reader_of(things: Things) -> ClaimsReader[Scene]:
    """Reads the statements about things of a folder. An object is named by its name; its kind alone names none."""
    words = {"name": things.names, "kind": things.all_kinds, "position": POSITIONS}

    def form(template: str, holds: Callable[[GridScene, Mapping[str, str]], bool], *, names: bool = True) -> Form:
        return form_of(template, words, holds, names=names)

    return ClaimsReader(grammar_of(things), (
        form(r"There is an? {name} at the {position}\.", some),
        form(r"An? {name} is at the {position}\.", some),
        form(r"(?:Yes, t|T)here is an? {name}\.", some),
        form(r"(?:No, t|T)here is no (?:{name}|{kind})\.", none, names=False),
        form(r"There is more than one (?:{name}|{kind})\.", several),
        form(r"There is nothing at the {position}\.", none, names=False),
        form(r"The {kind} is an? {name}\.", some),
        form(r"The object at the {position} is an? {kind}\.", some),
        form(r"The {name} is at the {position}\.", some),
        form(r"There (?:is|are) (?P<count>no|\d{1,3}) (?:objects?|{kind}s?)\.", counted, names=False),
    ), naming=("name",))  # fmt: skip
