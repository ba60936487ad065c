"""MM-Vet (Yu et al. 2023, arXiv 2308.02490): open questions, whose answers a judge grades from 0 to 1, by the capabilities that they need.

A question needs one or several of recognition, OCR, knowledge, language generation, spatial awareness and math (`rec`, `ocr`, `know`,
`gen`, `spat`, `math`). The total is the mean grade in percent, a capability's score the mean over the questions that need it. Grades come
from `vigc judge --benchmark mm-vet` or from the public evaluator (`mm-vet_evaluator.py`), whose file may hold several runs: means are
over them, and `std` is the standard deviation of their totals. A grade that the judge's reply does not contain is left out and counted in
`num_unparsable`. `published` counts it as 0 and rounds to one place, as the public code does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean, pstdev
from typing import Any

from policies.benchmarks.base import ANSWER, BENCHMARKS, Prediction, Question, by_question
from policies.benchmarks.documents import BenchmarkDataError, Document, Entry, Reader, kind, show
from policies.benchmarks.predictions import AnswerBenchmark, Fields, missing_count, read_predictions

_SCORE = "score"
_GRADES = Fields(values=(_SCORE,))
_EXPECTED = "a judge's grade from 0 to 1 (have answers graded with vigc judge --benchmark mm-vet)"


@BENCHMARKS.register("mm-vet")
class MmVet(AnswerBenchmark):
    """`total`, `by_capability`, `by_integration` (questions that need exactly these capabilities), in percent.

    Data: `mm-vet.json`, `{id: {"imagename", "question", "answer", "capability"}}`. Predictions: grades, `{id: {"score": [0.5, ...]}}` as
    the public evaluator writes them, or lines with `question_id` and `score` as `vigc judge` does.
    """

    def read(self, documents: Sequence[Document]) -> list[Question]:
        return [question for document in documents for question in _questions(document)]

    def read_predictions(self, document: Document, questions: Sequence[Question], allow_missing: bool = False) -> list[Prediction]:
        ids = {question.question_id: None for question in questions}
        return read_predictions(document, ids, _GRADES, _fault_of, allow_missing=allow_missing)

    def parse(self, question: Question, answer: str, setting: str = ANSWER) -> str | None:
        return answer

    def score(self, questions: Sequence[Question], predictions: Sequence[Prediction]) -> dict[str, Any]:
        answers = by_question(predictions)
        runs = {one: _runs_of(answer) for one, answer in answers.items()}
        if self.published:
            runs = {one: [grade or 0.0 for grade in grades] for one, grades in runs.items()}
        read = {one: [grade for grade in grades if grade is not None] for one, grades in runs.items()}
        graded = {one: fmean(grades) for one, grades in read.items() if grades}
        graded |= {question.question_id: 0.0 for question in questions if question.question_id not in answers}
        found: dict[str, Any] = {"total": self._mean(graded.values()), **self._spread(questions, read)}
        found |= {"num_questions": len(questions), "num_unparsable": sum(grade is None for grades in runs.values() for grade in grades)}
        found |= missing_count([question.question_id for question in questions], answers)
        groups: dict[str, dict[str, list[float]]] = {"by_capability": {}, "by_integration": {}}
        for question in questions:
            if question.question_id in graded:
                for capability in question.category.split("+"):
                    groups["by_capability"].setdefault(capability, []).append(graded[question.question_id])
                groups["by_integration"].setdefault(question.category, []).append(graded[question.question_id])
        return found | {name: {one: self._mean(of) for one, of in sorted(group.items())} for name, group in groups.items()}

    def _spread(self, questions: Sequence[Question], read: dict[str, list[float]]) -> dict[str, float]:
        """The standard deviation of the totals of several runs, where all questions have equally many."""
        num_runs = {len(read.get(question.question_id, ())) for question in questions}
        if len(num_runs) != 1 or max(num_runs) < 2:
            return {}
        totals = [100 * fmean(run) for run in zip(*(read[question.question_id] for question in questions), strict=True)]
        return {"std": self._rounded(pstdev(totals))}

    def _mean(self, grades: Iterable[float]) -> float:
        found = list(grades)
        return self._rounded(100 * fmean(found)) if found else 0.0

    def _rounded(self, value: float) -> float:
        return round(value, 1) if self.published else value


def _questions(document: Document) -> list[Question]:
    reader = Reader(document)
    if document.entries is not None or not isinstance(document.content, dict):
        raise BenchmarkDataError([f"{document.name} holds {kind(document.content)}; expected MM-Vet's questions, an object by question id"])
    found = [question for key, value in document.content.items() if (question := _question(key, value, reader)) is not None]
    reader.done()
    return found


def _question(key: str, value: Any, reader: Reader) -> Question | None:
    entry = Entry(f"question {show(key)}", value)
    if not isinstance(value, dict):
        reader.fault(entry.place, f"{show(value)}; expected an object with question, answer and capability")
        return None
    text = reader.get(entry, "question", str, "the question's text")
    answer = reader.get(entry, "answer", str, "the right answer, with <AND> and <OR> between its parts")
    capabilities = sorted(set(reader.texts(entry, "capability", "a list of capabilities, such as ocr")))
    if text is None or answer is None or not capabilities:
        return None
    image = value.get("imagename")
    return Question(key, text, image if isinstance(image, str) else "", answers=(answer,), category="+".join(capabilities))


def _runs_of(answer: Any) -> list[float | None]:
    """The grade of each run; None for one that was not read."""
    given = answer.get(_SCORE) if isinstance(answer, dict) else answer
    return given if isinstance(given, list) else [given]


def _fault_of(answer: Any) -> str | None:
    runs = _runs_of(answer)
    if not runs or (isinstance(answer, dict) and _SCORE not in answer):
        return f"{show(answer)} holds no {_SCORE}; expected {_EXPECTED}"
    wrong = [grade for grade in runs if grade is not None and not _is_grade(grade)]
    return f"the grade is {show(wrong[0])} ({kind(wrong[0])}); expected {_EXPECTED}" if wrong else None


def _is_grade(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and 0 <= value <= 1
