"""Content words: the words of a question that name something, rather than ask for it."""

from __future__ import annotations

import re

FUNCTION_WORDS = (
    "a an the this that these those and or but if than then so as of in on at to from by for with about into over is are was were "
    "be been being am do does did have has had can could will would should may might must what which who whom whose where when why "
    "how it its they them their there here he she his her you your we our i me my not no any some all both each other more most "
    "many much very just also only"
)
ASKING_WORDS = (
    "image", "picture", "photo", "scene", "shown", "show", "see", "seen", "visible", "describe", "description", "detail", "detailed",
    "give", "object", "objects", "thing", "color", "colour", "shape", "size", "kind", "type", "number", "position", "large", "small",
    "big", "left", "right", "above", "below", "same", "different",
)  # fmt: skip
"""Words that ask for or compare things rather than name one: a description need not contain them."""


def words_of(text: str) -> set[str]:
    """The words of a text in lower case, without a plural s."""
    return {_singular(word) for word in re.findall(r"\w+", text.lower())}


def _singular(word: str) -> str:
    """The word without a plural s: crude, but equal for both sides of a comparison."""
    return word[:-1] if len(word) > 3 and word.endswith("s") else word
