"""Parse a teacher's output: pairs of question and answer, and rejected texts with reasons.

    conversation   blocks of `Question: ...` and `Answer: ...`, a line `===` between blocks (or between all parts)
    complex        question, a line `===`, answer
    detail         the answer alone

Of a conversation the part before the first bad block is kept, because later turns may refer to earlier ones. A reasoning model's reasoning
is cut off; a text whose reasoning has no end is rejected.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from policies.answers.reasoning import ANSWER_MARK, REASONING_MARK, whole_text, without_reasoning
from policies.chat import LENGTH, REASONING, REFUSAL, Reply
from policies.correction.sentences import split_sentences
from policies.generation.instructions import QuestionType
from policies.texts import word_set

MAX_KEPT_CHARACTERS = 4_000
"""Characters of a rejected text that are kept to explain the reason."""
MAX_CHARACTERS = 32_768
"""Longest output, in characters, that is parsed."""


class Fault(StrEnum):
    """Why a text of a teacher was rejected."""

    EMPTY = "empty"
    CUT_OFF = "cut_off"  # the teacher's token limit ended it
    HALF_BLOCK = "half_block"
    NO_QUESTION = "no_question"
    BAD_FORM = "bad_form"
    TOO_SHORT = "too_short"
    TOO_LONG = "too_long"
    OTHER_LANGUAGE = "other_language"
    MENTIONS_SOURCE = "mentions_source"  # it speaks of captions or coordinates, which nobody who sees an image would
    UNFINISHED_REASONING = "unfinished_reasoning"  # the token limit ended it before the answer
    MARKS = "marks"  # it contains a mark of a chat template, such as <image>
    NONSENSE = "nonsense"
    REFUSAL = "refusal"


@dataclass(frozen=True, slots=True)
class RejectedText:
    """A text that was rejected, or the beginning of a long one."""

    fault: Fault
    text: str


@dataclass(frozen=True, slots=True)
class TaughtPairs:
    """The result of parsing an output."""

    pairs: tuple[tuple[str, str], ...] = ()
    """Questions and answers, white space normalised."""
    rejected: tuple[RejectedText, ...] = ()


@dataclass(frozen=True, slots=True)
class _Bounds:
    """Words of a question and of an answer."""

    question: tuple[int, int]
    answer: tuple[int, int]


_BOUNDS = {
    QuestionType.CONVERSATION: _Bounds((2, 60), (1, 150)),
    QuestionType.DETAIL: _Bounds((2, 60), (8, 600)),
    QuestionType.COMPLEX: _Bounds((4, 90), (8, 500)),
}


class _FaultError(Exception):
    """A part of the output is rejected."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault


def read_reply(question_type: QuestionType, reply: Reply, question: str = "") -> TaughtPairs:
    """The pairs of a teacher's reply; see `read_output`."""
    if reply.finish_reason == REFUSAL:
        return _rejected(Fault.REFUSAL, reply.text)
    if reply.finish_reason == REASONING:
        return _rejected(Fault.UNFINISHED_REASONING, reply.text)
    return read_output(question_type, reply.text, question, cut_off=reply.finish_reason == LENGTH)


def read_output(question_type: QuestionType, text: str, question: str = "", *, cut_off: bool = False) -> TaughtPairs:
    """The pairs of an output.

    Args:
        question: the question that a description answers; outputs of other types contain theirs.
        cut_off: whether the teacher's token limit ended the output.
    """
    if len(text) > MAX_CHARACTERS:
        return _rejected(Fault.TOO_LONG, text)
    written, text = text, whole_text(text) or ""
    if not text and written.strip():
        return _rejected(Fault.UNFINISHED_REASONING if without_reasoning(written) is None else Fault.EMPTY, written)
    if not text.strip():
        return _rejected(Fault.EMPTY, text)
    if question_type is not QuestionType.CONVERSATION and cut_off:
        return _rejected(Fault.CUT_OFF, text)
    if question_type is not QuestionType.DETAIL and not _SEPARATOR.search(text) and not _QUESTION.search(text):
        return _rejected(_fault_of_formless(" ".join(text.split())), text)
    pairs: list[tuple[str, str]] = []
    found = [(question, _without_label(text, _ANSWER), text)] if question_type is QuestionType.DETAIL else list(_blocks(text))
    for index, (asked, answer, block) in enumerate(found):
        try:
            if question_type is QuestionType.COMPLEX and index > 0:
                raise _FaultError(Fault.BAD_FORM)
            if cut_off and index == len(found) - 1:
                raise _FaultError(Fault.CUT_OFF)
            pairs.append(_checked(question_type, asked, answer))
        except _FaultError as error:
            kept = pairs if question_type is QuestionType.CONVERSATION else []
            return TaughtPairs(tuple(kept), (*_rejected(error.fault, block).rejected,))
    return TaughtPairs(tuple(pairs)) if pairs else _rejected(Fault.BAD_FORM, text)


def _rejected(fault: Fault, text: str) -> TaughtPairs:
    return TaughtPairs((), (RejectedText(fault, text[:MAX_KEPT_CHARACTERS]),))


# ---- the form


_SEPARATOR = re.compile(r"^[ \t]*={3,}[ \t]*\r?$", re.MULTILINE)
_LABEL = r"^[ \t*#>_]*{}[ \t*_]*(?:\d{{1,3}}[ \t*_]*)?:[ \t*_]*"
_QUESTION = re.compile(_LABEL.format("question"), re.IGNORECASE | re.MULTILINE)
_ANSWER = re.compile(_LABEL.format("answer"), re.IGNORECASE | re.MULTILINE)


def _blocks(text: str) -> Iterator[tuple[str, str, str]]:
    """Question, answer and the text of each block; a missing part is empty. Text before the first label `Question:` is the
    teacher's comment on its work."""
    first = _QUESTION.search(text)
    parts = [part.strip() for part in _SEPARATOR.split(text[first.start() :] if first else text)]
    parts = iter([part for part in parts if part])
    for part in parts:
        questions, answers = list(_QUESTION.finditer(part)), list(_ANSWER.finditer(part))
        if len(questions) == 1 and len(answers) == 1 and questions[0].end() <= answers[0].start():
            yield part[questions[0].end() : answers[0].start()], part[answers[0].end() :], part
        elif answers or len(questions) > 1:
            yield "", "", part
        else:
            answer = next(parts, "")
            if _QUESTION.search(answer):
                answer = ""
            yield _without_label(part, _QUESTION), _without_label(answer, _ANSWER), f"{part}\n===\n{answer}"


def _without_label(text: str, label: re.Pattern[str]) -> str:
    match = label.match(text.lstrip())
    return text.lstrip()[match.end() :] if match else text


# ---- the words


def _checked(question_type: QuestionType, question: str, answer: str) -> tuple[str, str]:
    """The pair with its white space normalised.

    Raises:
        _FaultError: it is rejected.
    """
    question, answer = " ".join(question.split()), " ".join(answer.split())
    if not question and not answer:
        raise _FaultError(Fault.BAD_FORM)
    if not question:
        raise _FaultError(Fault.NO_QUESTION)
    if not answer:
        raise _FaultError(Fault.HALF_BLOCK)
    both = f"{question} {answer}"
    _check_words(both)
    _check_language(question, answer)
    _check_sense(question, answer)
    if question_type is not QuestionType.DETAIL and not question.endswith("?") and not _REQUEST.match(question):
        raise _FaultError(Fault.NO_QUESTION)
    bounds = _BOUNDS[question_type]
    for text, (least, most) in ((question, bounds.question), (answer, bounds.answer)):
        num_words = len(text.split())
        if not least <= num_words <= most:
            raise _FaultError(Fault.TOO_SHORT if num_words < least else Fault.TOO_LONG)
    return question, answer


def _fault_of_formless(text: str) -> Fault:
    """The reason against a text without the expected form: that, unless there is a better one."""
    try:
        _check_words(text)
        _check_language("", text)
        _check_sense("", text)
    except _FaultError as error:
        return error.fault
    return Fault.BAD_FORM


def _check_words(text: str) -> None:
    for fault, pattern in ((Fault.MARKS, MARKS), (Fault.REFUSAL, _REFUSAL), (Fault.MENTIONS_SOURCE, _SOURCE)):
        if pattern.search(text):
            raise _FaultError(fault)


MARKS = re.compile(
    rf"{REASONING_MARK}|{ANSWER_MARK}|"
    r"<(?:image|video|audio|pad|unk|bos|eos|start_of_turn|end_of_turn)>|</?s>|<\|[^|>]{0,40}\|>|\[/?INST\]|={3}",
    re.IGNORECASE,
)
"""Marks of chat templates, of this form and of LLaVA's files, which a text must not contain."""
_REQUEST = re.compile(
    r"(?:please |can you |could you )?(?:describe|explain|name|list|tell|give|identify|count|walk|write|look)\b", re.IGNORECASE
)
_REFUSAL = re.compile(
    r"\bas an? (?:AI|artificial|language|large language|text)\b"
    r"|\bI(?:'m| am) (?:sorry|unable|afraid|not able)\b"
    r"|\bI (?:can(?:'t|not)|could not|couldn't|don't have|do not have)\b"
    r"|\b(?:no|without an?) (?:image|photo|photograph|picture) (?:is|was|has been|to look at|provided|given)\b",
    re.IGNORECASE,
)
_SOURCE = re.compile(
    r"\bcaption(?:s|ed|ing)?\b|\bbounding[ -]?box|\bbbox|\bcoordinates?\b|\bannotat(?:ed|ions?)\b|\bobject list\b|\blist of objects\b"
    r"|\b(?:provided|given|above|textual) (?:text|descriptions?|information|sentences?|context|data)\b"
    r"|\b(?:description|text|information|sentences?|context) (?:provided|given|above)\b"
    r"|\b(?:according to|based on|from) the (?:descriptions?|texts?|sentences?)\b"
    r"|[\[(]\s*[01]?\.\d+\s*,\s*[01]?\.\d+"
    r"|\b0\.\d{3}\b",
    re.IGNORECASE,
)


_ENGLISH = word_set(
    "the a an is are was were be been being am this that these those there here it its he she they we you his her their our your him "
    "them of in on at to for from with by about into over under near behind beside between through around above below and or but so "
    "because if as than not no yes do does did has have had can could will would may might must should what which who whom whose where "
    "when why how many much some any all both each every other another more most very also too only one two three while out up down off"
)
_OTHERS = {
    "spanish": word_set(
        "el la los las una unos unas del y que en es está están con por para su sus hay se lo como qué cuál dónde al muy pero"
    ),
    "french": word_set("le la les une des du et que en est sont avec pour sur dans ce cette il elle ils au aux qui quel quelle où pas y a"),
    "german": word_set(
        "der das den dem des ein eine einen einem einer und ist sind mit auf im zu von für nicht es er sie wie wo auch sich"
    ),
    "italian": word_set("il lo la gli le una uno del della e che è sono con per su nel nella di da si al alla quale dove come non"),
    "portuguese": word_set("os as uma um do da dos das e que em é são com por para no na nos nas seu sua se ao qual onde há está não de"),
    "dutch": word_set("de het een en van zijn met op te voor niet dat die er aan naar bij hij ze wat waar hoe ook om"),
}
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")  # noqa: RUF001
_FEW_WORDS = 5
"""Number of words up to which a text says nothing about its language."""
_MIN_ENGLISH_SHARE = 0.1
"""In English about two words in five are function words; in random words and most other languages almost none are these."""
_MAX_OTHER_SCRIPT = 0.15
_MIN_LETTERS = 0.6


def _check_language(question: str, answer: str) -> None:
    both = f"{question} {answer}"
    if not both.isascii():
        letters = [one for one in both if one.isalpha()]
        if sum(ord(one) > 0x24F for one in letters) > _MAX_OTHER_SCRIPT * len(letters):  # beyond the Latin blocks
            raise _FaultError(Fault.OTHER_LANGUAGE)
    asked, answered = _WORD.findall(question.lower()), _WORD.findall(answer.lower())
    for words in (asked, answered, asked + answered):
        num_english = _num_known(words, _ENGLISH)
        if len(words) > _FEW_WORDS and any(_num_known(words, known) > num_english for known in _OTHERS.values()):
            raise _FaultError(Fault.OTHER_LANGUAGE)
    num_words = len(asked) + len(answered)
    if num_words > _FEW_WORDS and _num_known(asked + answered, _ENGLISH) < _MIN_ENGLISH_SHARE * num_words:
        raise _FaultError(Fault.NONSENSE)


def _num_known(words: Sequence[str], known: frozenset[str]) -> int:
    return sum(map(known.__contains__, words))


_STUTTER = re.compile(r"\b(\w+)(?:\W+\1\b){3}", re.IGNORECASE)
_LONG_TEXT = 30
_MIN_DISTINCT = 0.4


def _check_sense(question: str, answer: str) -> None:
    both = f"{question} {answer}"
    if not both.isprintable() or sum(map(str.isalpha, both)) + both.count(" ") < _MIN_LETTERS * len(both):
        raise _FaultError(Fault.NONSENSE)
    words = _WORD.findall(both.lower())
    triples = list(zip(words, words[1:], words[2:], strict=False))
    loops = len(triples) >= _LONG_TEXT and len(set(triples)) < _MIN_DISTINCT * len(triples)
    sentences = split_sentences(answer)
    if loops or _STUTTER.search(both) or len(set(sentences)) < len(sentences) - 1 or question == answer:
        raise _FaultError(Fault.NONSENSE)
