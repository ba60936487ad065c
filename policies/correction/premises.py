"""Premises: what a question presupposes, and how a model is asked about it before the question is answered.

`Where is the red ring?` presupposes exactly one red ring. A model that is asked where it is invents a place; asked whether there is
one, it looks. Definite noun phrases are found by word lists, not by a parser: a missed phrase costs nothing, so the rules leave out
doubtful ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from policies.texts import with_article, word_set

MAX_PREMISES = 6
"""Most phrases of a question that are asked about, to bound its cost."""

QUESTIONS = ("Is there {a phrase}?", "How many {phrases} are there?")
REFUTATIONS = (
    r"^[^,.]*\b(no|none|not|zero|0)\b",
    r"^[^,.]*\b([2-9]|[1-9]\d+|two|three|four|five|six|seven|eight|nine|ten|several|many)\b",
)

_MAX_WORDS = 4
_DEFINITE = re.compile(rf"\bthe(?=((?: [\w-]+){{1,{_MAX_WORDS + 1}}}))", re.IGNORECASE)


_PHRASE_ENDS = word_set(
    "a an the this that these those it its he his she her they their and or but nor than as if so because while when where what who "
    "which whose why how of in on at to from by for with without about into onto over under above below behind beside between near "
    "next around across along through against inside outside within toward towards off up down out is are was were be been being am "
    "do does did done have has had can could will would should may might must not there here right-hand wearing holding sitting "
    "standing riding walking looking doing eating playing carrying using lying facing hanging made shown seen visible located hold "
    "wear sit stand look eat play appear seem seems show shows contain contains belong cast touch touching look looks likely still also"
)
_NO_OBJECTS = word_set(
    "image picture photo photograph scene view foreground background left right top bottom center centre middle side front back end "
    "edge corner same other others first second last most least one ones color colour shape size number kind type position location "
    "way reason purpose weather time day mood content situation relationship difference rest"
)
"""Heads of phrases that name a place, a property or the picture itself, which cannot be missing."""


_ADJECTIVES = word_set(
    "red orange yellow green cyan blue purple pink brown black white gray grey golden dark bright colorful large small big "
    "little tiny huge tall short long wide narrow thick thin high low deep very old young new open closed empty full wet dry clean dirty "
    "hot cold warm cool happy sad angry tired hungry asleep awake alone alive dead busy ready safe good bad nice larger "
    "smaller bigger taller shorter longer wider higher lower older younger newer darker lighter brighter heavier thicker thinner more less"
)
"""After a noun they end its phrase: `red ring` of `Is the red ring small`. Without a noun there is no phrase."""


def named_objects(question: str) -> tuple[str, ...]:
    """The objects that a question presupposes to be there and unique, in order, once each, in lower case: `red ring` of `Is the
    red ring small?`. Plural phrases presuppose no number and are left out."""
    phrases = (_phrase(match[1].lower().split()) for match in _DEFINITE.finditer(" ".join(question.split())))
    return tuple(dict.fromkeys(phrase for phrase in phrases if phrase))[:MAX_PREMISES]


def _phrase(words: Sequence[str]) -> str:
    """The noun phrase at the start of `words`; empty if it does not name an object."""
    noun = next((index for index, word in enumerate(words) if word not in _ADJECTIVES), len(words))
    ends = (index for index, word in enumerate(words) if word in _PHRASE_ENDS or (word in _ADJECTIVES and index > noun))
    kept = words[: next(ends, len(words))]
    if not noun < len(kept) <= _MAX_WORDS or kept[-1] in _NO_OBJECTS or kept[0] == "same":
        return ""
    is_plural = kept[-1].endswith("s") and not kept[-1].endswith("ss")
    return "" if is_plural else " ".join(kept)


def premise_questions(phrase: str, templates: Sequence[str]) -> list[str]:
    """The questions about one phrase: `{phrase}`, `{a phrase}` and `{phrases}` in the templates stand for it."""
    forms = {"{phrase}": phrase, "{a phrase}": with_article(phrase), "{phrases}": _plural(phrase)}
    return [re.sub(r"\{(?:a )?phrases?\}", lambda form: forms[form[0]], template) for template in templates]


def check_templates(name: str, templates: Sequence[str]) -> None:
    """Raise `ValueError` unless there are templates and each names its phrase."""
    if isinstance(templates, str) or not templates or not all(re.search(r"\{(?:a )?phrases?\}", one) for one in templates):
        raise ValueError(f"{name} is {templates!r}; expected a list of questions, each with {{phrase}}, {{a phrase}} or {{phrases}}")


def _plural(phrase: str) -> str:
    if re.search(r"(?:s|x|z|ch|sh)$", phrase):
        return f"{phrase}es"
    return f"{phrase[:-1]}ies" if re.search(r"[^aeiou]y$", phrase) else f"{phrase}s"
