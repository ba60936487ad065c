"""Compare the statements of an answer about a scene with the truth, one by one.

`questions.is_correct` says whether an answer is exactly right; this says how much of it is. Objects are counted as in CHAIR
(Rohrbach et al. 2018, arXiv 1809.02156): those that an answer names as present, and those among them that are not. This only measures:
no policy sees it for generated records; for answers to acceptance questions the policy `evidence` sees whether an object is not there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from operator import add

from loop.sources.shapes.questions import Premise, truth
from loop.sources.shapes.scene import COLORS, POSITIONS, SHAPES, SIZES, Scene, Thing
from policies.correction.sentences import split_sentences


@dataclass(frozen=True, slots=True)
class Claims:
    """Counts over one answer, or summed over many."""

    num_statements: int = 0
    """Sentences that state something of this world's grammar."""
    num_contradicted: int = 0
    """Statements that the scene, or for a conclusion the truth about the question, contradicts."""
    num_unreadable: int = 0
    """Sentences of no known form, including conclusions without a question to conclude on."""
    num_objects: int = 0
    """Mentions of an object as present, by color, shape or both."""
    num_objects_not_there: int = 0
    """Mentions that match no object of the scene; wrong sizes and places are contradictions, not missing objects."""

    def __add__(self, other: Claims) -> Claims:
        return Claims(*map(add, astuple(self), astuple(other)))


def claims_of(scene: Scene, question: str, answer: str) -> Claims:
    """The claims of `answer` to `question`. Statements are read one by one, so that a wrong one does not affect the others."""
    total = Claims()
    for sentence in split_sentences(answer):
        total += _claim(scene, question, sentence)
    return total


def _claim(scene: Scene, question: str, sentence: str) -> Claims:
    if sentence in ("So yes.", "So no."):
        right = truth(scene, question)
        if right.premise is Premise.UNREADABLE or not right.answer.endswith(("So yes.", "So no.")):
            # With a false premise nothing follows: either conclusion contradicts that there is none.
            return Claims(1, 1) if right.premise is Premise.FALSE else Claims(num_unreadable=1)
        return Claims(1, int(not right.answer.endswith(sentence)))
    for form in _FORMS:
        match = form.pattern.fullmatch(sentence)
        if match is not None:
            words = {name: word for name, word in match.groupdict().items() if word is not None}
            is_named = form.names and bool({"color", "shape"} & set(words))
            is_there = any(_fits(thing, {name: words[name] for name in ("color", "shape") if name in words}) for thing in scene.things)
            return Claims(1, int(not form.holds(scene, words)), 0, int(is_named), int(is_named and not is_there))
    return Claims(num_unreadable=1)


def _fits(thing: Thing, words: Mapping[str, str]) -> bool:
    return all(getattr(thing, name) == word for name, word in words.items())


def _number(scene: Scene, words: Mapping[str, str]) -> int:
    return sum(_fits(thing, words) for thing in scene.things)


def _some(scene: Scene, words: Mapping[str, str]) -> bool:
    return _number(scene, words) > 0


def _none(scene: Scene, words: Mapping[str, str]) -> bool:
    return _number(scene, words) == 0


def _several(scene: Scene, words: Mapping[str, str]) -> bool:
    return _number(scene, words) > 1


def _counted(scene: Scene, words: Mapping[str, str]) -> bool:
    count = 0 if words["count"] == "no" else int(words["count"])
    return _number(scene, {name: word for name, word in words.items() if name != "count"}) == count


@dataclass(frozen=True, slots=True)
class _Form:
    """A form of statement: how it reads, when it holds, and whether it names its object as being there."""

    pattern: re.Pattern[str]
    holds: Callable[[Scene, Mapping[str, str]], bool]
    names: bool = True


_WORDS = {"color": COLORS, "shape": SHAPES, "size": SIZES, "position": POSITIONS}


def _form(template: str, holds: Callable[[Scene, Mapping[str, str]], bool], *, names: bool = True) -> _Form:
    """`{color}` in a template becomes a named group over the colors, `{color?}` one that may be missing with its space."""
    pattern = template
    for name, options in _WORDS.items():
        group = f"(?P<{name}>{'|'.join(options)})"
        pattern = pattern.replace(f"{{{name}?}} ", f"(?:{group} )?").replace(f"{{{name}}}", group)
    return _Form(re.compile(pattern), holds, names)


_FORMS = (
    _form(r"There is an? {size?} {color?} {shape} at the {position}\.", _some),
    _form(r"An? {size?} {color?} {shape} is at the {position}\.", _some),
    _form(r"(?:Yes, t|T)here is an? {size?} {color?} {shape}\.", _some),
    _form(r"(?:No, t|T)here is no {size?} {color?} (?:{shape}|object)\.", _none, names=False),
    _form(r"There is more than one {size?} {color?} (?:{shape}|object)\.", _several),
    _form(r"There is nothing at the {position}\.", _none, names=False),
    _form(r"The {shape} is {color}\.", _some),
    _form(r"The {color} object is an? {shape}\.", _some),
    _form(r"The {color?} {shape} is {size}\.", _some),
    _form(r"The {color?} {shape} is at the {position}\.", _some),
    _form(r"There (?:is|are) (?P<count>no|\d{1,3}) {size?} {color?} objects?\.", _counted, names=False),
)
"""The first form that matches a sentence counts."""
