"""Answer normalisation of the VQA challenge (Antol et al. 2015, arXiv 1505.00468) and of M4C (arXiv 1911.06258; TextVQA).

Both reproduce their public evaluators exactly, oddities included, because published numbers depend on them:
hyphens and slashes become spaces unless one stands beside a space, a comma between digits joins all punctuation of the text, only
the first 32 periods go, and `somebody'd` loses its apostrophe.
"""

from __future__ import annotations

import re
from functools import lru_cache

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MAX_PERIODS = 32
_ANY_MARK = re.compile("[" + re.escape(_PUNCTUATION) + "]")
_ARTICLES = frozenset(("a", "an", "the"))
_COUNTED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0"} | {word: str(n) for n, word in enumerate(_COUNTED)}

_SPELLINGS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd how'll
how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't
she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd
something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've
we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


_CONTRACTIONS = {word[:at] + word[at + 1 :]: word for word in _SPELLINGS.split() for at, letter in enumerate(word) if letter == "'"}
_CONTRACTIONS["somebody'd"] = "somebodyd"


def normalise_punctuation(text: str) -> str:
    """The first half of the official normalisation: punctuation goes or becomes a space."""
    if _ANY_MARK.search(text):
        joined = _DIGIT_COMMA_DIGIT.search(text) is not None
        changed = text
        for mark in _PUNCTUATION:
            if mark in text:
                changed = changed.replace(mark, "" if joined or f"{mark} " in text or f" {mark}" in text else " ")
        text = changed
    return _PERIOD.sub("", text, count=_MAX_PERIODS) if "." in text else text


def trimmed(text: str) -> str:
    """`text` on one line without space around it, as both normalisations begin."""
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=1 << 18)
def normalise_answer(text: str) -> str:
    """The official normalisation: punctuation, lower case, number words up to ten, articles, contractions."""
    words = (_NUMBERS.get(word, word) for word in normalise_punctuation(trimmed(text)).lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def normalise_answer_m4c(text: str) -> str:
    """M4C's normalisation: lower case first, commas and question marks go, `'s` is split off, then the official one."""
    return normalise_answer(text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip())
