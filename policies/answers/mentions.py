# ruff: noqa: RUF001 (dashes and letters of other scripts are intended)
"""Find the choices that an answer mentions: by letter or text, affirmed or denied, as the answer or in passing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from policies.answers.yes_no import fold

OUTSIDE = -1
"""Index of a letter that is beyond the choices."""

_UNSPACED = "\u0590-\u08ff\u0900-\u109f\u1100-\u11ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
"""Characters of scripts without letter cases, beside which a Latin letter is a word of its own."""
_MARKUP = re.compile(r"\*+|`+|~~|__+|\$|</?(?:b|i|em|strong|p|u|span|br)\b[^<>]{0,60}>")
_PUNCTUATION = re.compile("([\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f])")
_BESIDE = re.compile(rf"(?<=[{_UNSPACED}])(?=[A-Za-z0-9])|(?<=[A-Za-z0-9])(?=[{_UNSPACED}])")
_COUNTED = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_NUMBERS = {word: str(number) for number, word in enumerate(_COUNTED, 2)}
_NUMBER_WORD = re.compile(rf"\b(?:{'|'.join(_NUMBERS)})\b", re.IGNORECASE)
_EDGES = " \t.,;:!?\"'()[]{}#"
_ARTICLE = re.compile(r"(?:an?|the) (?=\S)")
_TOO_COMMON = frozenset(["a", "an", "the", "it", "is", "of", "i", "in", "on", "at", "to", "be", "as", "or", "and"])
"""Texts of choices that sentences contain in passing; they count only as the whole answer."""
_YES_NO = frozenset(["yes", "no", "true", "false", "是", "否", "不是", "有", "没有", "对", "不对"])


@dataclass(frozen=True, slots=True)
class Mention:
    """A choice at one place of a plain text."""

    start: int
    end: int
    index: int
    by_letter: bool
    stated: bool = False
    """Whether it is stated as the answer."""


def plain(text: str) -> str:
    """`text` for the search: ASCII forms of full-width characters, no markup, single spaces within lines, digits for number words."""
    text = _BESIDE.sub(" ", _MARKUP.sub("", fold(_PUNCTUATION.sub(r"\1 ", text))))
    text = _NUMBER_WORD.sub(lambda word: _NUMBERS[word[0].lower()], text)
    return "\n".join(line for line in (" ".join(line.split()) for line in text.splitlines()) if line)


def bare(text: str) -> str:
    """`text` normalised to compare whole choices: also without case, punctuation around it and a leading article."""
    said = " ".join(plain(text).lower().split()).strip(_EDGES)
    return _ARTICLE.sub("", said, count=1) if _ARTICLE.match(said) else said


def reads_yes_no(choices: Sequence[str]) -> bool:
    """Whether the choices are a yes and a no, which sentences contain in passing."""
    return sum(bare(choice) in _YES_NO for choice in choices) >= 2


@lru_cache(maxsize=4096)
def _texts(choices: tuple[str, ...]) -> tuple[re.Pattern[str] | None, dict[str, int]]:
    """A pattern for the texts of choices, the longest first, and the choice of each. A text of several choices is left out."""
    found: dict[str, set[int]] = {}
    for index, choice in enumerate(choices):
        for text in _spellings(choice):
            found.setdefault(text, set()).add(index)
    names = {text: of.pop() for text, of in found.items() if len(of) == 1 and text not in _TOO_COMMON and text not in _YES_NO}
    names = {text: index for text, index in names.items() if len(text) > 1 or not text.isascii() or text.isdigit()}
    if not names:
        return None, {}
    longest_first = sorted(names, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(_whole, longest_first)), re.IGNORECASE), names


def _spellings(choice: str) -> Iterator[str]:
    """Its text; the part before a semicolon ("neither; they are equal"); its letter with the word before ("pair B" of "magnet pair B")."""
    whole = bare(choice)
    yield whole
    parts = [bare(part) for part in whole.split(";")]
    yield from dict.fromkeys(part for part in parts if len(parts) > 1 and part and part != whole)
    labelled = re.search(r"(?:^|\s)(\w{2,} [a-z])$", whole)
    if labelled and labelled[1] != whole:
        yield labelled[1]


def _whole(text: str) -> str:
    """A pattern for `text` as whole words; neither "3" in "30", "3.5" or "-3", nor "bus" in "bluebus"."""
    spelled = r"\s".join(map(re.escape, text.split()))
    before = rf"(?<![^\W{_UNSPACED}])" + (r"(?<!\d[.,/:])(?<!-)" if text[0].isdigit() else "") if not _unspaced(text[0]) else ""
    after = rf"(?![^\W{_UNSPACED}])" + (r"(?![.,/:]\d)" if text[-1].isdigit() else "") if not _unspaced(text[-1]) else ""
    return before + spelled + after


def _unspaced(character: str) -> bool:
    return re.match(rf"[{_UNSPACED}]", character) is not None


def labelled_choices(choices: Sequence[str]) -> dict[str, int]:
    """Letter -> the choice that ends with it ("sample B"), if choices are distinguished this way."""
    found = {}
    for index, choice in enumerate(choices):
        match = re.search(r"\w \(?([a-z])\)?$", bare(choice))
        if match:
            found[match[1].upper()] = index
    return found


# ---- letters

_LETTER = re.compile(rf"(?<![^\W{_UNSPACED}])(?<!['.\-&@#+])[A-Za-z](?![^\W{_UNSPACED}])(?!['\-+#]\w)(?!\.\w)")
_ALSO = r"(?:,\s*)?(?:\b(?:or|and|and/or|oder|und|ou|et|y|e|или|и)\b|或者?|和|与|及|还是|または|と|또는|&)|[,/、]"
_LIST = re.compile(rf"(?<![\w'])\(?[A-Z]\)?(?:\s*(?:{_ALSO})\s*(?:options? )?\(?[A-Z]\)?(?![\w']))+")
_LABEL_WORD = re.compile(
    r"\b(?:options?|choices?|answers?|letter|вариант\w*|пункт|opción|option|réponse)\s*[(\[\"':]*\s*$|(?:选项|選項)\s*[(:]*\s*$",
    re.IGNORECASE,
)
_INTRODUCES = re.compile(
    r"(?:^|[\n.,;:!?=>([{\"'—–→…-]|\b(?:is|it's|that's|be|are|was|would|think|say|guess|believe|choose|pick|select|with|for|so|thus|hence|then|"
    r"therefore|either|both|between|not|but|or|and|than|of|probably|likely|maybe|perhaps|definitely|clearly|just|only|because|since|while|"
    r"это|est|ist|es|è|é|lautet|наверное|думаю)|[是为為选選择擇项項案答应故即はが은는이가])\s*$",
    re.IGNORECASE,
)
_CLOSES = re.compile(
    r"\s*(?:$|[\n.,;:!?)\]}\"'、—–…-]|(?:is|are|was|because|since|as|for|due|and|or|but|though|although|while|whereas|which|seems?|looks?|has|"
    r"have|would|should|can|shows?|does|matches|fits)\b|[是为為选選项項正对對因所だでがはを입이가은는번])",
    re.IGNORECASE,
)
_LABELS = re.compile(r"\s*(?:[.):\]]|[,—–-]\s|$|\n)")
_STARTS = re.compile(r"(?:^|\n)\W*$")
_VERB = re.compile(r"\s+(?:is|are|has|shows?|seems?|looks?|would|should|can|could|matches|does|contains|describes|because|since|as|for)\b")


def letters(text: str, choices: Sequence[str], taken: Sequence[Mention]) -> Iterator[Mention]:
    """Letters that name choices; letters within texts of choices (`taken`) do not count."""
    listed = [match.span() for match in _LIST.finditer(text) if _INTRODUCES.search(text[max(0, match.start() - 40) : match.start()])]
    for match in _LETTER.finditer(text):
        start, end = match.span()
        if any(one.start <= start < one.end for one in taken):
            continue
        if any(first <= start < last for first, last in listed) or _is_label(text, start, end):
            index = ord(match[0].upper()) - ord("A")
            before = text[max(0, start - 80) : start]
            stated = _is_stated(before, text[end : end + 60])
            if 0 <= index < len(choices):
                yield Mention(start, end, index, True, stated)
            elif stated or _STARTS.search(before):
                yield Mention(start, end, OUTSIDE, True, stated)


def _is_label(text: str, start: int, end: int) -> bool:
    """Whether the letter is a label, not a word of its own ("A", "I") or part of a name ("vitamin C")."""
    before, after, letter = text[max(0, start - 80) : start], text[end : end + 60], text[start:end]
    is_word = letter in "AIa"
    if letter.isupper() and _STATING.search(before):
        return not is_word or bool(re.match(r"\s*(?:$|[\n.,;:!?)\]}\"'、—–-])|\s+(?:because|since|as)\b", after))
    bracketed = before[-1:] in ("(", "[") and after[:1] in (")", "]")
    if _LABEL_WORD.search(before):
        return not is_word or bool(re.match(r"\W*(?:$|\n)|[.,;:!?)\]]", after)) or not after[:1].isspace() or bool(_VERB.match(after))
    if bracketed:
        return letter.isupper() or bool(_STARTS.search(before)) or _is_stated(before, after)
    if _STARTS.search(before):
        if letter.islower():
            return bool(re.match(r"[.):\]]", after)) or not after.strip()
        return bool(_LABELS.match(after) or _VERB.match(after) or (not is_word and _CLOSES.match(after)))
    if letter.islower():
        return _is_stated(before, after) and bool(re.match(r"\s*(?:[.,;:!?)\]\n]|$)", after))
    if not _INTRODUCES.search(before):
        return False
    return bool(re.match(r"\s*(?:$|[\n.,;:!?)\]}\"'])", after) if is_word else _CLOSES.match(after))


# ---- what is said of a mention

_IS = r"(?:\s+(?:here|should|would|must|might|could|will|to (?:the|this) question))*\s*(?:is|are|be|was|:|=|-|–|—|→|>)*\s*"
_FILLED = r"(?:(?:that|therefore|thus|probably|likely|definitely|clearly|indeed|option|choice|letter|the|an?|选项|это)[\s:]+)*[\s(\[\"':]*$"
_STATING = re.compile(
    rf"(?:\b(?:answer|choice|selection)s?{_IS}|\boptions?\s+(?:is|:)\s*"
    r"|\b(?:choose|chose|pick|picked|select|selected|go with|going with|opt for|opting for|settle on)\s+"
    r"|(?:答案|正解|答え|回答)\s*(?:应该|应当|应|就)?\s*(?:是|为|為|选|は|:)*\s*|(?:选择|選擇|选|選)\s*|(?:정답|답)\s*(?:은|는|:)?\s*"
    r"|\bответ(?:\s+будет)?\s*[:—–-]?\s*|\brespuesta(?: correcta)?\s*(?:es|:)?\s*(?:la\s+)?"
    r"|\br[ée]ponse(?: correcte)?\s*(?:est|:)?\s*(?:la\s+)?"
    r"|\bantwort\s*(?:ist|lautet|:)?\s*|\brisposta(?: corretta)?\s*(?:è|:)?\s*(?:la\s+)?"
    r"|\bresposta(?: correta)?\s*(?:é|:)?\s*(?:a\s+)?|đáp án\s*(?:là|:)?\s*"
    r"|(?:الإجابة|الجواب)(?:\s+(?:الصحيحة|الصحيح))?\s*(?:هي|هو|:)?\s*|उत्तर\s*(?:है|:)?\s*|คำตอบ\s*(?:คือ|:)?\s*)" + _FILLED,
    re.IGNORECASE,
)
_CONFIRMED = re.compile(
    r"[\])\"']*\s+(?:is|would be|must be|seems|appears to be)\s+(?:(?:the|most|probably|clearly|definitely|indeed)\s+)*"
    r"(?:correct|right|best|answer|"
    r"appropriate|accurate)\b|\s*(?:选项)?\s*(?:是|为)?\s*(?:正确|对的)",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"[,.;:!?\n]|\b(?:but|while|whereas|although|though|however|а|но|sondern|mais|pero)\b|而是|但", re.IGNORECASE)
_DENIES = re.compile(
    r"\b(?:not(?! only| just| merely)|no(?! doubt| question| problem)|never|neither|nor|without(?! a doubt| doubt)|cannot|"
    r"rather than|instead of|"
    r"unlike|other than|except|excluding|exclude|eliminate|rule out|не|ни|нет|nicht|kein\w*)\b|n't\b"
    r"|不是|并非|没有|不选|不应|排除|而非|不可能|無い|아니",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"[\])\"']*\s*(?:\w+ ){0,2}?(?:(?:is|are|was|were|seems?|looks?)\s*)?(?:(?:clearly|definitely|therefore|simply)\s+)?"
    r"(?:(?:wrong|incorrect|false|unlikely|impossible|irrelevant|absent|missing|ruled out|eliminated|excluded)\b"
    r"|(?:not|isn't|aren't|wasn't)\s*(?:$|(?:the (?:answer|right|correct|best)|correct|right|it\b|an option|"
    r"possible|visible|shown|present|there|in the|"
    r"seen|supported|true|mentioned|depicted|likely|here))"
    r"|(?:can|could|should|must) be (?:ruled out|eliminated|excluded)|(?:cannot|can't|could not) be (?:right|correct|true|the answer)"
    r"|(?:does|do|did)(?: not|n't)\s+(?:match|fit|apply|appear|answer|exist|work|make sense))"
    r"|\s*(?:选项)?\s*(?:是)?\s*(?:不正确|错误|不对|错的|不符合|不是|不存在|被排除|可以排除|неверн|неправильн)",
    re.IGNORECASE,
)


def _is_stated(before: str, after: str) -> bool:
    return bool(_STATING.search(before) or _CONFIRMED.match(after))


def texts(text: str, choices: Sequence[str]) -> list[Mention]:
    """Texts of choices that appear in `text` as whole words; of overlapping ones the longer."""
    pattern, names = _texts(tuple(choices))
    if pattern is None:
        return []
    found = []
    for match in pattern.finditer(text):
        before = text[max(0, match.start() - 80) : match.start()]
        index = names[" ".join(match[0].lower().split())]
        found.append(Mention(*match.span(), index, False, _is_stated(before, text[match.end() : match.end() + 60])))
    return found


def is_denied(text: str, one: Mention, others: Sequence[Mention]) -> bool:
    """Whether the clause denies this choice. A negation within another mention ("not dangerous") is not a denial."""
    inside = [other for other in others if other is not one and not other.by_letter and one.start - 200 < other.end <= one.start]
    ends = [m.end() for m in _CLAUSE.finditer(text, max(0, one.start - 200), one.start) if not _within(m.start(), inside)]
    clause_start = ends[-1] if ends else max(0, one.start - 200)
    denials = _DENIES.finditer(text, clause_start, one.start)
    if any(not _within(match.start(), inside) for match in denials):
        return True
    following = text[one.end : one.end + 80]
    boundary = re.search(r"[,.;!?\n]|\bbut\b", following)
    return _DENIED.match(following[: boundary.start()] if boundary else following) is not None


def _within(place: int, mentions: Sequence[Mention]) -> bool:
    return any(one.start <= place < one.end for one in mentions)
