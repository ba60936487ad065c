"""The interface of a benchmark: questions read from its files, a prompt for each, and a score over predictions.

A benchmark is built by name from `BENCHMARKS`. Its questions come from documents (`policies.benchmarks.documents`), so that
scoring and running a model share the same reader:

    pope = BENCHMARKS.build("pope")
    questions = pope.read([document])
    prompts = [pope.prompt(question) for question in questions]
    result = pope.score(questions, [Prediction(question.question_id, answer) for ...])

Every score is in percent, unrounded. Unreadable answers count as wrong and their number is reported; they are never
silently dropped from a mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from policies.benchmarks.documents import Document
from policies.registry import Registry

ANSWER = "answer"
"""The only setting of a benchmark that asks each question in just one way."""

SHORT_ANSWER = "Answer the question using a single word or phrase."
OPTION_LETTER = "Answer with the option's letter from the given choices directly."
"""The two formatting prompts of LLaVA-1.5 (arXiv 2310.03744, table 7)."""
YES_OR_NO = "Please answer yes or no."
"""How MME's questions end; for yes-or-no questions that do not say so."""

Judge = Callable[[str, Sequence[str], str], str | None]
"""`(question, choices, answer)` to the choice that the answer means, as its text; None if it means none."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one image. `question_id` is unique within a benchmark's data."""

    question_id: str
    text: str
    image: str = ""
    """The image as the data names it: a file name or an id; empty if the question has none."""
    choices: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    """Right answers: the annotators', or the one right letter or label."""
    right_choice: str = ""
    """The right one of `choices`, if `answers` are something else (A-OKVQA)."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Soft labels, answer to score in 0..1, if the data has them in place of the annotators' answers."""
    category: str = ""
    split: str = ""
    context: str = ""
    """Context beside the question: a hint, the captions of the image."""
    difficult: bool = False
    """Left out of A-OKVQA's direct answers."""
    objects: tuple[str, ...] = ()
    """Categories of the annotated objects (CHAIR)."""
    group: str = ""
    """Questions of one group that count as one: the rotations of a question (MMBench)."""


class Prediction(NamedTuple):
    """One answer to one question. `group` distinguishes several sets of answers to the same questions."""

    question_id: str
    answer: Any
    group: str = ""


class Benchmark(Protocol):
    """One benchmark. `published` is whether it reproduces known mistakes of the public code."""

    published: bool
    settings: tuple[str, ...]
    """Ways in which a question is asked; `ANSWER` alone for most."""

    def read(self, documents: Sequence[Document]) -> list[Question]:
        """The questions of the benchmark's files, in their order.

        Raises:
            BenchmarkDataError: the files are another benchmark's or are broken.
        """
        ...

    def read_predictions(self, document: Document, questions: Sequence[Question], allow_missing: bool = False) -> list[Prediction]:
        """The answers of a file, checked against the questions.

        Raises:
            BenchmarkDataError: unknown, missing or repeated questions, other field names, answers that are not text.
        """
        ...

    def prompt(self, question: Question, setting: str = ANSWER) -> str:
        """The prompt for a model, without the image token."""
        ...

    def parse(self, question: Question, answer: str, setting: str = ANSWER) -> str | None:
        """A model's text as the benchmark's answer; None if it cannot be read."""
        ...

    def score(self, questions: Sequence[Question], predictions: Sequence[Prediction]) -> dict[str, Any]:
        """Scores by name, in percent; a question without a prediction counts as wrong."""
        ...


BENCHMARKS: Registry[Benchmark] = Registry("benchmark")


def percent(hits: float, total: int) -> float:
    """`hits` of `total` in percent; 0 when there is nothing to count."""
    return 100.0 * hits / total if total else 0.0


def by_question(predictions: Iterable[Prediction]) -> dict[str, Any]:
    """Question id -> answer, for benchmarks with one set of answers."""
    return {prediction.question_id: prediction.answer for prediction in predictions}


def with_options(question: Question, instruction: str = OPTION_LETTER) -> str:
    """Hint, question and lettered choices, one per line, and the instruction for the answer."""
    lines = [question.context] if question.context else []
    lines.append(question.text)
    lines.extend(f"{chr(ord('A') + index)}. {choice}" for index, choice in enumerate(question.choices))
    return "\n".join([*lines, instruction])
