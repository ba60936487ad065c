"""Metrics that score answers to the questions of a labelled set: 0..1 each, higher is better, by name in `ANSWER_METRICS`.

| metric       | score of an answer                                                                             | called       |
|--------------|------------------------------------------------------------------------------------------------|--------------|
| `exact`      | 1 where it equals the reference word by word: for worlds whose program knows the answers       | `accuracy`   |
| `vqa`        | soft accuracy over all references, with the official normalisation of VQA                      | `accuracy`   |
| `choice`     | 1 where it names the right one of the question's choices                                       | `accuracy`   |
| `yes_no`     | 1 where it says yes or no as the reference does                                                | `accuracy`   |
| `likelihood` | how likely the model finds the reference: geometric mean of the probabilities of its tokens    | `likelihood` |
| `rouge_l`    | overlap with the best reference: F-measure of the longest common subsequence of words          | `rouge_l`    |
| `judge`      | a text model's scores: m / (m + r) of those of the model and the reference; 0.5 is a tie       | `judge`      |

Answers are parsed by the functions that `vigc score` and `vigc evaluate` use (`policies.benchmarks`). A user-defined metric is a
class `module:Name` that extends `AnswerMetric`; its scores are called `score`.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from policies.answers.reasoning import final_text
from policies.answers.yes_no import parse_yes_no
from policies.benchmarks.base import OPTION_LETTER, SHORT_ANSWER, Question, with_options
from policies.benchmarks.captions.overlap import longest_common
from policies.benchmarks.options import read_option
from policies.benchmarks.vqa import vqa_accuracy
from policies.checks import check_at_least, check_at_most
from policies.generation.knowledge import is_knowledge, vic_prompt
from policies.metrics import exact_match
from policies.records import HeldOutQuestion
from policies.registry import Registry
from policies.scoring.judging import OWN_RULES, Look, Pair, Review, rule_for

AUTO = "auto"
"""In place of a metric's name: the result of `choose` for the set."""
YES_NO = "yes_no"
Measure = Literal["accuracy", "likelihood", "rouge_l", "judge", "score"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
ACCURACY: Measure = "accuracy"
MIXED: Measure = "score"
"""Common name of scores of several measures."""

_YES_OR_NO = re.compile(r"(yes|no)\b(?![- ]?one\b)", re.IGNORECASE)
_MAX_SHORT_WORDS = 4
_MAX_WORDS_WITH_FULL_STOP = 2
_SHORT_SHARE = 0.9


class AnswerMetric:
    """Scores answers. Base class of user-defined metrics, which define `score`."""

    measure: ClassVar[Measure] = "score"
    """Name of the scores in tables and metric names."""

    def prompt(self, question: HeldOutQuestion) -> str:
        """The prompt: the question as in training."""
        return vic_prompt(question.question_type, question.question)

    def problem(self, question: HeldOutQuestion) -> str | None:
        """Why answers to the question cannot be scored by this metric; None if they can."""
        return None

    def score(self, question: HeldOutQuestion, answer: str) -> float:
        """Score of one answer, 0..1."""
        raise NotImplementedError(f"{type(self).__name__} has no method score(question, answer)")


ANSWER_METRICS: Registry[AnswerMetric] = Registry("metric", AnswerMetric)


@ANSWER_METRICS.register("exact")
@dataclass(frozen=True)
class Exact(AnswerMetric):
    """The reference, word by word, case and punctuation included."""

    measure = ACCURACY

    def prompt(self, question: HeldOutQuestion) -> str:
        return question.question

    def score(self, question: HeldOutQuestion, answer: str) -> float:
        return float(exact_match(answer, question.answer))


@ANSWER_METRICS.register("vqa")
@dataclass(frozen=True, kw_only=True)
class Vqa(AnswerMetric):
    """Soft accuracy over all references after VQA's normalisation.

    Options:
        instruction: added to questions that are not of a knowledge type, whose prompt asks for a short answer; empty adds nothing.
    """

    measure = ACCURACY
    instruction: str = SHORT_ANSWER

    def prompt(self, question: HeldOutQuestion) -> str:
        if is_knowledge(question.question_type):
            return super().prompt(question)
        return _with_instruction(question.question, self.instruction)

    def score(self, question: HeldOutQuestion, answer: str) -> float:
        return vqa_accuracy(answer, question.references)


@ANSWER_METRICS.register("choice")
@dataclass(frozen=True, kw_only=True)
class Choice(AnswerMetric):
    """Whether the answer names the right choice. The choices are the record's, or those that the question's text lists.

    Options:
        instruction: added below the choices if they are the record's.
    """

    measure = ACCURACY
    instruction: str = OPTION_LETTER

    def prompt(self, question: HeldOutQuestion) -> str:
        if not question.choices or options_in(question.question):
            return question.question
        return with_options(Question("", question.question, choices=question.choices), self.instruction)

    def problem(self, question: HeldOutQuestion) -> str | None:
        if not choices_of(question):
            return "it has no choices"
        return None if self._right(question) is not None else f"its answer {question.answer[:80]!r} names none of its choices, or several"

    def score(self, question: HeldOutQuestion, answer: str) -> float:
        return float(read_option(answer, choices_of(question)) == self._right(question))

    def _right(self, question: HeldOutQuestion) -> int | None:
        choices = choices_of(question)
        return choices.index(question.right_choice) if question.right_choice in choices else read_option(question.answer, choices)


@ANSWER_METRICS.register(YES_NO)
@dataclass(frozen=True, kw_only=True)
class YesNo(AnswerMetric):
    """Whether the answer says yes or no as the reference does; one that says neither is wrong.

    Options:
        instruction: added to the question; empty adds nothing.
    """

    measure = ACCURACY
    instruction: str = ""

    def prompt(self, question: HeldOutQuestion) -> str:
        return _with_instruction(question.question, self.instruction)

    def problem(self, question: HeldOutQuestion) -> str | None:
        return None if _YES_OR_NO.match(question.answer) else f"its answer {question.answer[:80]!r} does not begin with yes or no"

    def score(self, question: HeldOutQuestion, answer: str) -> float:
        return float(parse_yes_no(answer) == parse_yes_no(question.answer))


@ANSWER_METRICS.register("likelihood")
@dataclass(frozen=True)
class Likelihood(AnswerMetric):
    """The probability per token that the model assigns to the reference: the exponential of its mean log-probability given image and
    question, which is the geometric mean of its tokens' probabilities. Works for any text. The model also answers, so that its answers
    can be read and their length be guarded; the answer itself is not scored."""

    measure = "likelihood"

    def of(self, logprob: float, num_tokens: int) -> float:
        """The score, of the summed log-probability (nats) of so many tokens."""
        return min(1.0, math.exp(logprob / max(1, num_tokens)))


@ANSWER_METRICS.register("rouge_l")
@dataclass(frozen=True)
class RougeL(AnswerMetric):
    """ROUGE-L (Lin 2004, W04-1013): F1 of the longest common subsequence of words, in lower case and without punctuation, with the
    reference that gives the highest score."""

    measure = "rouge_l"

    def score(self, question: HeldOutQuestion, answer: str) -> float:
        said = _words(final_text(answer))
        return max(_rouge_l(said, _words(reference)) for reference in question.references)


@ANSWER_METRICS.register("judge")
@dataclass(frozen=True, kw_only=True)
class Judge(AnswerMetric):
    """A text model that sees all references and rates the answer and the first reference from 1 to 10: m / (m + r). It is asked in both
    orders, and again if its first line is not a verdict; an answer without a verdict in each order has no score.

    Options:
        endpoint: URL of an endpoint, up to its version; or give `path`.
        api: the endpoint's protocol: `openai` (most servers) or `anthropic`.
        model: name of the model at the endpoint.
        path: folder or Hugging Face id of a text model that runs in the driver's process.
        api_key_env: environment variable that holds the endpoint's key.
        both_orders: ask with either answer first, which removes position bias.
        num_attempts: most requests for one verdict.
        max_tokens: of one reply.
        temperature: of the judge.
        max_requests: bound for the whole run, which ends with an error if it needs more.
        max_usd: bound on the cost of the whole run, by the two prices below; null for none.
        usd_per_million_input: price of a million tokens that the judge reads.
        usd_per_million_output: price of a million tokens that it writes.
        max_concurrency: requests at once.
        requests_per_minute: most requests started in a minute; null for no limit.
        timeout_s: time limit of one request.
    """

    measure = "judge"
    endpoint: str = ""
    api: Literal["openai", "anthropic"] = "openai"
    model: str = ""
    path: str = ""
    api_key_env: str = ""
    both_orders: bool = True
    num_attempts: int = 3
    max_tokens: int = 512
    temperature: float = 0.2
    max_requests: int = 20_000
    max_usd: float | None = None
    usd_per_million_input: float = 0.0
    usd_per_million_output: float = 0.0
    max_concurrency: int = 8
    requests_per_minute: float | None = None
    timeout_s: float = 120.0

    def __post_init__(self) -> None:
        if bool(self.endpoint) == bool(self.path):
            raise ValueError(f"endpoint is {self.endpoint!r} and path is {self.path!r}; give one of the two")
        if bool(self.endpoint) != bool(self.model):
            raise ValueError("endpoint and model go together: give both, or path alone")
        if self.api not in ("openai", "anthropic"):
            raise ValueError(f"api is {self.api!r}; expected openai or anthropic")
        if self.path and (self.api_key_env or self.max_usd is not None):
            raise ValueError("api_key_env and max_usd are for an endpoint; a model at a path has neither key nor price")
        for name in ("num_attempts", "max_tokens", "max_requests"):
            check_at_least(name, getattr(self, name), 1)
        check_at_least("temperature", self.temperature, 0.0)
        check_at_most("temperature", self.temperature, 1.0 if self.api == "anthropic" else 2.0)

    @property
    def looks(self) -> tuple[Look, ...]:
        return (Look(False), Look(True)) if self.both_orders else (Look(False),)

    def pair(self, question: HeldOutQuestion, answer: str) -> Pair:
        """What the judge compares. The references are the context, because a judge that sees no image has to know what is right."""
        context = "People who saw the image answered the question:\n" + "\n".join(dict.fromkeys(question.references))
        category = _CATEGORIES.get(question.question_type, question.question_type)
        role, rule = rule_for(category, OWN_RULES)
        return Pair(question.question_id, category, context, question.question, question.answer, final_text(answer), role, rule)

    def of(self, reviews: Sequence[Review]) -> float | None:
        """The score from the reviews in every order; None if one has no verdict."""
        read = [review.scores for review in reviews if review.scores is not None]
        if len(read) < len(self.looks):
            return None
        reference, model = (sum(pair[side] for pair in read) for side in (0, 1))
        return model / (model + reference)


_CATEGORIES = {"conversation": "conv"}
"""Question types that have another name in the judge's rules."""


def choose(questions: Sequence[HeldOutQuestion], *, has_program: bool) -> tuple[str, str]:
    """The metric that fits a set, and why.

    Args:
        questions: the questions that will be asked; at least one.
        has_program: whether the set's world knows the answers itself.
    """
    if has_program:
        return "exact", "a program knows the answers"
    if all(_YES_OR_NO.match(question.answer) for question in questions):
        return YES_NO, "every answer begins with yes or no"
    if all(Choice().problem(question) is None for question in questions):
        return "choice", "every question has choices, and its answer is one of them"
    num_short = sum(all(map(_is_short, question.references)) for question in questions)
    shown = f"{num_short} of {len(questions)} questions have short answers"
    if num_short >= _SHORT_SHARE * len(questions):
        several = max(len(question.references) for question in questions)
        return "vqa", shown + (f", up to {several} each" if several > 1 else "")
    return "likelihood", shown + ", the others sentences"


def choices_of(question: HeldOutQuestion) -> tuple[str, ...]:
    """The choices of a question: the record's, or those listed in its text."""
    return question.choices or options_in(question.question)


_OPTION_LINE = re.compile(r"^[ \t]*\(?([A-Z])[.):][ \t]+(\S.*?)[ \t]*$", re.MULTILINE)
_OPTION_INLINE = re.compile(r"\(([A-Z])\)\s*([^()\n]*[^()\s])")


def options_in(text: str) -> tuple[str, ...]:
    """The choices that a question's text lists, two or more from A on: one a line (`A. a cat`), or within one (`(A) a cat (B) a dog`)."""
    for form in (_OPTION_LINE, _OPTION_INLINE):
        found = form.findall(text)
        if len(found) > 1 and "".join(letter for letter, _ in found) == string.ascii_uppercase[: len(found)]:
            return tuple(choice for _, choice in found)
    return ()


def _with_instruction(question: str, instruction: str) -> str:
    return f"{question}\n{instruction}" if instruction and instruction not in question else question


def _is_short(answer: str) -> bool:
    num_words = len(answer.split())
    return num_words <= (_MAX_WORDS_WITH_FULL_STOP if answer.rstrip().endswith((".", "!")) else _MAX_SHORT_WORDS)


_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\W{_IDEOGRAPHS}]+")
"""A word; scripts that are written without spaces are compared character by character."""


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _rouge_l(said: Sequence[str], reference: Sequence[str]) -> float:
    common = longest_common(said, reference)
    return 2 * common / (len(said) + len(reference)) if common else 0.0
