"""Decide whether an answer is a yes or a no."""

from __future__ import annotations

import re

from policies.answers.reasoning import final_answer

YES, NO = "yes", "no"

_WIDTHS = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {
    0x3000: " ", 0x3001: ",", 0x3002: ".", 0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"',
}  # fmt: skip


def fold(text: str) -> str:
    """`text` with ASCII characters in place of full-width ones, of ideographic punctuation and of typographic quotes."""
    return text if text.isascii() else text.translate(_WIDTHS)


def _words(words: str) -> str:
    return "|".join(words.split())


_SAYS_YES = (
    _words("yes yeah yep yup sí si oui ja sim да نعم हाँ はい ええ 예 네"),
    _words("是的 是 对的 对 有的 有 正确 没错 存在 當然 当然 對"),
    _words("true affirmative"),
)
_SAYS_NO = (
    _words("no nope nah non nein não нет لا नहीं いいえ 아니요 아니오 아뇨"),
    _words("不是的 不是 不 没有的 没有 沒有 没 無 无 否 不对 不對 不存在 错误 错"),
    _words("false negative"),
)
_HEAD = re.compile(
    rf"\W*(?:well\W+|sorry\W+)?(?:(?P<yes>{'|'.join(_SAYS_YES)})|(?P<no>(?:{'|'.join(_SAYS_NO)})(?![- ]?one\b)(?!\.? ?\d)))"
    r"(?=[\s,.!:;)\]\"'*-]|$)"
)
_AFFIRMED = re.compile(
    r"\W*(?:absolutely|certainly|definitely|of course|indeed|sure|correct|exactly|right|i think so|it is)\s*(?=[,.!;:]|$)"
)
_ANSWER_IS = re.compile(
    rf"(?:\banswer(?:\s+(?:is|would be|should be)|\s*[:=])|答案(?:应该)?(?:是|为)?|回答(?:是|为)?|ответ\b)[\s:*\"'-]*"
    rf"(?:(?P<yes>{'|'.join(_SAYS_YES)})|(?P<no>{'|'.join(_SAYS_NO)}))(?=[\s,.!:;)\]\"'*-]|$)"
)
_SAID = re.compile(r"(?<![\w'])(?:(yes|yeah|yep|yup)|(no(?![- ]?one\b)(?!\.? ?\d)|nope|nah))(?![\w'])")
_BOTH = re.compile(r"\W*(?:(?:either|both) )?(?:yes|no)(?:\W|\b(?:or|and|maybe|perhaps|yes|no)\b)*\b(?:yes|no)\W*")
_NOT_SAID = re.compile(r"\bnot (?:an? )?[\"']?(?:yes|no)\b")
_SENTENCE = re.compile(r"[^.!?\n]+[.!?\n]*")
_NO_DOUBT = re.compile(r"\b(?:there(?:'s| is) )?(?:no|without(?: an?y?)?) (?:doubt|question)\b(?: that)?")
_UNSURE = re.compile(
    r"\b(?:not|n't) (?:\w+ )?(?:clear|sure|certain|know|possible to)\b|n't know\b|\bunclear\b"
    r"|\b(?:cannot|can't|could not|couldn't|unable to|impossible to|hard to|difficult to) (?:be )?"
    r"(?:tell|say|determine|see clearly|judge|know)\w*"
    r"|不确定|不清楚|看不清|不知道|不明|(?:无法|不能|难以)(?:确定|判断|看清|回答)|わかりません|分かりません|모르"
)
_NEGATED = re.compile(r"\b(?:not|cannot|none|nothing|nobody|no-one|no one|neither|never|without|absent|lacks)\b|n't\b")
_OF_IT = re.compile(
    r"(?:,|;|\.|\bbut\b|\band\b|\bthough\b|\balthough\b)\W*(?:(?:but|and|though|although)\W+)?(?:it|he|she|they)(?:'s|'re|\b)"
)
_STATED = re.compile(
    r"\b(?:there(?:'s| is| are)|contains?|shows?|depicts?|features?|includes?|it is|it does|i (?:can )?see"
    r"|(?:is|are) (?:\w+ )?(?:visible|present))\b"
)
_NEGATED_CHINESE = re.compile(
    r"没有|沒有|没看|不是|不存在|看不到|看不见|不包含|不含|并无|并未|未见|未出现|ありません|いません|ない|없|아닙"
)
_STATED_CHINESE = re.compile(r"(?<![只所没沒如可能])有(?![点可没沒])|存在|包含|看到|看见|出现|あります|います|있")


def parse_yes_no(answer: str, *, in_sentences: bool = True) -> str | None:
    """`yes`, `no`, or None if the answer is neither.

    In order: what is stated as the answer ("Answer: yes"); the word that the answer begins with, whatever explains it afterwards; the
    first yes or no in it; a negation; "there is" and the like. Yes and no side by side, and unsure answers, are neither.

    Args:
        answer: as the model wrote it.
        in_sentences: whether to look beyond the first two.
    """
    text = fold(final_answer(answer)).lower().strip()
    asserted = "".join(sentence for sentence in _SENTENCE.findall(text) if not sentence.rstrip().endswith("?")).strip()
    text = _NO_DOUBT.sub(" ", asserted or text)
    if _BOTH.fullmatch(text) or _NOT_SAID.search(text):
        return None
    begins = _HEAD.match(text)
    head = None if begins is None else YES if begins["yes"] else NO
    stated = {YES if found["yes"] else NO for found in _ANSWER_IS.finditer(text)}
    if stated:
        return stated.pop() if len(stated) == 1 and (head is None or head in stated) else None
    return head or (_in_sentence(text) if in_sentences else None)


def _in_sentence(text: str) -> str | None:
    said = _SAID.search(text)
    if said:
        return YES if said[1] else NO
    if _UNSURE.search(text):
        return None
    stated, negated = _STATED.search(text), _NEGATED.search(text)
    if negated:  # "there is a dog, but it is not moving" speaks of a dog that is there
        of_it = stated and _OF_IT.search(text, stated.end(), negated.start())
        return YES if of_it else NO
    if stated or _AFFIRMED.match(text):
        return YES
    if _NEGATED_CHINESE.search(text):
        return NO
    return YES if _STATED_CHINESE.search(text) else None
