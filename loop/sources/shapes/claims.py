"""The statements of an answer about a scene of `shapes`, held against the truth; see `loop.sources.worlds.claims`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from loop.sources.shapes.questions import GRAMMAR
from loop.sources.shapes.scene import COLORS, POSITIONS, SHAPES, SIZES
from loop.sources.worlds.claims import Claims, ClaimsReader, Form, counted, form_of, none, several, some
from loop.sources.worlds.grid import GridScene

__all__ = ["READER", "Claims", "claims_of"]

_WORDS = {"color": COLORS, "shape": SHAPES, "size": SIZES, "position": POSITIONS}


def _form(template: str, holds: Callable[[GridScene, Mapping[str, str]], bool], *, names: bool = True) -> Form:
    return form_of(template, _WORDS, holds, names=names)


_FORMS = (
    _form(r"There is an? {size?} {color?} {shape} at the {position}\.", some),
    _form(r"An? {size?} {color?} {shape} is at the {position}\.", some),
    _form(r"(?:Yes, t|T)here is an? {size?} {color?} {shape}\.", some),
    _form(r"(?:No, t|T)here is no {size?} {color?} (?:{shape}|object)\.", none, names=False),
    _form(r"There is more than one {size?} {color?} (?:{shape}|object)\.", several),
    _form(r"There is nothing at the {position}\.", none, names=False),
    _form(r"The {shape} is {color}\.", some),
    _form(r"The {color} object is an? {shape}\.", some),
    _form(r"The {color?} {shape} is {size}\.", some),
    _form(r"The {color?} {shape} is at the {position}\.", some),
    _form(r"There (?:is|are) (?P<count>no|\d{1,3}) {size?} {color?} objects?\.", counted, names=False),
)

READER = ClaimsReader(GRAMMAR, _FORMS, naming=("color", "shape"))
claims_of = READER.read
