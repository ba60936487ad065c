"""GQA (Hudson and Manning 2019, arXiv 1902.09506): accuracy over the balanced questions, by answer and by question type.

The public code (`eval.py` of the release) compares prediction and answer as they stand, and counts only questions that are balanced; both
are done here, but by default prediction and answer are normalised as in VQA and "It is red." is read as the answer that it gives
(`policies.benchmarks.vqa.read_answer`). `published` compares as the public code does. Consistency, validity, plausibility, grounding and
distribution, which need further files, are not computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from policies.answers.normalise import normalise_answer
from policies.benchmarks.base import ANSWER, BENCHMARKS, SHORT_ANSWER, Prediction, Question, by_question, percent
from policies.benchmarks.documents import BenchmarkDataError, Document, Entry, Reader, kind, show
from policies.benchmarks.predictions import AnswerBenchmark, Fields, fields_in, missing_count, missing_findings, read_predictions
from policies.benchmarks.vqa import read_answer

BALANCED, UNBALANCED = "balanced", "unbalanced"
_QUERY = "query"
"""The structural type of open questions; all others have two answers to choose from."""


@BENCHMARKS.register("gqa")
class Gqa(AnswerBenchmark):
    """`accuracy`, `binary` and `open`, and the accuracy `by_structural_type`, all over the balanced questions.

    Data: a questions file (`{question id: {"question", "answer", "imageId", "isBalanced", "types": {"structural"}}}`); predictions for
    questions that are not balanced may be missing. Predictions: GQA's own (records with `questionId` and
    `prediction`), or `{question id: answer}`, or records with `question_id` and `answer`.
    """

    def read(self, documents: Sequence[Document]) -> list[Question]:
        questions = [question for document in documents for question in _questions(document)]
        if not any(question.split == BALANCED for question in questions):
            names = ", ".join(document.name for document in documents)
            raise BenchmarkDataError([f"{names}: no question is balanced; give testdev_balanced_questions.json"])
        return questions

    def read_predictions(self, document: Document, questions: Sequence[Question], allow_missing: bool = False) -> list[Prediction]:
        fields = fields_in(document, Fields(key="questionId", values=("prediction",)))
        ids = {question.question_id: None for question in questions}
        found = read_predictions(document, ids, fields, allow_missing=True)
        balanced = [question.question_id for question in questions if question.split == BALANCED]
        findings = [] if allow_missing else missing_findings(document.name, balanced, {one.question_id for one in found})
        if findings:
            raise BenchmarkDataError(findings)
        return found

    def prompt(self, question: Question, setting: str = ANSWER) -> str:
        return f"{question.text}\n{SHORT_ANSWER}"

    def parse(self, question: Question, answer: str, setting: str = ANSWER) -> str | None:
        return answer if self.published else read_answer(answer, [normalise_answer(question.answers[0])])

    def score(self, questions: Sequence[Question], predictions: Sequence[Prediction]) -> dict[str, Any]:
        answers = by_question(predictions)
        asked = [question for question in questions if question.split == BALANCED]
        said = {q.question_id: self.parse(q, answers[q.question_id]) for q in asked if q.question_id in answers}
        hits: dict[str, list[bool]] = {}
        for question in asked:
            right = question.answers[0] if self.published else normalise_answer(question.answers[0])
            hits.setdefault(question.category, []).append(said.get(question.question_id) == right)

        def accuracy(types: Sequence[str]) -> float:
            return percent(sum(sum(hits[name]) for name in types), sum(len(hits[name]) for name in types))

        found: dict[str, Any] = {"accuracy": accuracy(list(hits)), "binary": accuracy([name for name in hits if name != _QUERY])}
        found |= {"open": accuracy([name for name in hits if name == _QUERY]), "num_questions": len(asked)}
        found["num_unparsable"] = sum(answer is None for answer in said.values())
        found["by_structural_type"] = {name: accuracy([name]) for name in sorted(hits)}
        return found | missing_count([question.question_id for question in asked], answers)


def _questions(document: Document) -> list[Question]:
    content = document.content
    if not isinstance(content, dict) or not content or not all(isinstance(value, dict) for value in content.values()):
        raise BenchmarkDataError([f"{document.name} holds no questions by id; expected GQA's questions file"])
    reader, questions = Reader(document), []
    for question_id, value in content.items():
        entry = Entry(f"question {question_id}", value)
        text = reader.get(entry, "question", str, "the question's text")
        answer = reader.get(entry, "answer", str, "a text (the test and challenge splits have none)")
        image = reader.id(entry, "imageId")
        balanced = reader.get(entry, "isBalanced", bool, "true or false")
        types = reader.get(entry, "types", dict, "an object with structural")
        structural = types.get("structural") if types is not None else ""
        if not isinstance(structural, str):
            reader.fault(entry.place, f"types has the structural type {show(structural)} ({kind(structural)}); expected a text")
        elif text is not None and answer is not None:
            split = BALANCED if balanced else UNBALANCED
            questions.append(Question(question_id, text, image, answers=(answer,), category=structural, split=split))
    reader.done()
    return questions
