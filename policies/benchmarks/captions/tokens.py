# ruff: noqa: RUF001 (typographic quotes and dashes are intended)
"""Split captions into words like the COCO caption evaluation, whose tokenizer is Stanford's PTBTokenizer 3.4.1 (Java).

The public code (salaniz/pycocoevalcap `ptbtokenizer.py`) splits in the manner of the Penn Treebank, writes the words in lower case and
then removes the tokens of its punctuation list. `tokenize` gives the same words for English captions: its rules are written from the
output of the Java program. Brackets stay as words (`-lrb-`): the public list has their names in capitals. What occurs in no caption
(telephone numbers, entities of HTML, file names with underscores) may be split in another way.
"""

from __future__ import annotations

import re
from functools import lru_cache

_WORD = r"[^\W_]"
_LETTER = r"[^\W\d_]"
_END = r"(?![^\W_])"
_ABBREVIATIONS = """
adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave bhd bldg blvd brig bros calif capt cf cie cmdr co col colo comdr conn
corp cos cpl ct dak dec dept det dr drs elec ens esq est etc ext feb fla fri ft ga gen gov govs hon inc ind insp intl invt jan jos jr jul
jun kan kans ky lieut lt ltd maj mar md messrs mfg mich minn mlle mme mo mon mont mr mrs ms msgr mt mtg natl neb nev nov oct okla penn pfc
ph plc ppte ppty pres prof pte ptes pty ptys pvt rd rep reps rev rt sen sens sep sept seq sfc sgt spc sq sr st ste supt sys tel tenn thu
thurs treas tue tues univ va vs vt wed wis wisc wm wyo
"""
_CAPITALISED_ABBREVIATIONS = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash"
"""Words that are an abbreviation only with a capital: "Miss." is one, "miss." ends a sentence."""
_SENTENCE_STARTS = """
a about according additionally after an as at but earlier he her here however if in it last many more now once one other our she since so
some such that the their then there these they this we what when while yet you
"""
"""Words that, with a capital, end a sentence before them, so that a letter and a full stop are no initial ("player A. The")."""


def _any(words: str) -> str:
    return "|".join(sorted(words.split(), key=len, reverse=True))


_STARTS = _any(_SENTENCE_STARTS.title() + _SENTENCE_STARTS.upper())


_TOKEN = re.compile(
    "|".join([
        r"</?(?!https?:)[A-Za-z!][^<>]*>",
        r"(?i:https?://|www\.)[^\s\"<>()]*[^\s\"<>().,;:!?']",
        r"[A-Za-z0-9._+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+",
        r"[@#][A-Za-z]+",
        # Apostrophes: clitics, words that begin or end with one, words around one.
        rf"'(?i:n'|t(?=(?:is|was){_END})|(?:em|cause|till?|n|s|ll|re|ve|d|m){_END}|\d0s{_END})",
        rf"(?i:n't{_END}|y'(?=all)|c'mon|nor'easter|ol'|somethin')",
        rf"(?:[dlno]|[A-HJ-XZ])'{_LETTER}{{2,}}(?:-{_WORD}+)*",
        rf"(?:{_WORD}+[-/])*{_WORD}*?{_LETTER}(?=(?i:n't){_END})",
        rf"(?i:{_LETTER}+[aeiouy]'[aeiou]{_LETTER}*)",
        rf"(?i:can(?=not{_END}(?!-))|(?<=can)not|(?:gon|wan)(?=na{_END}(?!-))|got(?=ta{_END}(?!-))|(?:gim|lem)(?=me{_END}(?!-)))",
        # Full stops that belong to a word.
        rf"(?:{_LETTER}\.)+{_LETTER}(?:\.?(?:-{_WORD}+)+|\.(?!{_WORD})|{_END})",
        rf"(?:(?i:{_any(_ABBREVIATIONS)}|ph\.d)|{_any(_CAPITALISED_ABBREVIATIONS)})\.(?!{_WORD})|(?i:no)\.(?=\s*\d)",
        rf"{_LETTER}{_WORD}*(?:\.{_LETTER}{_WORD}*)+(?:-{_WORD}+)*",
        rf"{_LETTER}\.(?!\s*$|\s+(?:{_STARTS})(?![\w.]))",
        # Numbers and words.
        r"(?:US|HK|A|C)\$|[Cc]\+\+|[CF]#",
        rf"[A-Z]+&[A-Z]+{_END}",
        rf"[+-]?\d{{1,4}}[ \u00a0-]\d{{1,4}}/\d{{1,4}}{_END}",
        rf"\d+(?:[.,:]\d+)*(?:-{_WORD}+)+",
        rf"[+-]?(?:\d+(?:[.,:]\d+)+|(?:[.,:]\d+)+{_END})|[+-]\d+{_END}",
        rf"{_WORD}+(?:[-/_]{_WORD}+)*",
        rf"[:;=]-?[()\[\]DPp]{_END}",
        r"-{5,}|-{2,4}|[!?]+|_+|\*+|#+|@+|<<|>>|[^\w\s]",
    ])
)  # fmt: skip
_MEANT = str.maketrans({
    "’": "'", "…": " ... ", "–": " -- ", "—": " -- ", "£": "#", "€": "$", "¢": " cents ", "½": " 1/2 ", "¼": " 1/4 ", "¾": " 3/4 ",
    "⅓": " 1/3 ", "⅔": " 2/3 ", "\u00ad": "", "\u200b": " ", "\ufeff": " ",
})  # fmt: skip
_NAMES = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_REMOVED = frozenset([*"'\"`.?!,:;-“”‘‛«»‹›", "--", "---", "----"])
_LAST_OF_THE_BASIC_PLANE = "\uffff"


@lru_cache(maxsize=1 << 17)
def tokenize(caption: str) -> tuple[str, ...]:
    """The words of a caption, in lower case and without punctuation."""
    tokens = (one for one in _TOKEN.findall(caption.translate(_MEANT)) if one not in _REMOVED and one <= _LAST_OF_THE_BASIC_PLANE)
    words = (_NAMES.get(one) or one.replace("(", "-lrb-").replace(")", "-rrb-") for one in tokens)  # brackets are also in smileys
    return tuple(" ".join(words).lower().split())
