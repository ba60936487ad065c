"""Questions whose answers a program knows, such as those about an embedded world: an answer is right if it is the reference, word by word.

There is no public code; `published` changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from policies.benchmarks.base import ANSWER, BENCHMARKS, Prediction, Question, by_question, percent
from policies.benchmarks.documents import Document, Entry, Reader, identity, read_records
from policies.benchmarks.predictions import AnswerBenchmark, missing_count


@BENCHMARKS.register("exact")
class Exact(AnswerBenchmark):
    """`accuracy`, and the accuracy `by_category` if the data names categories.

    Data: JSON Lines (`question_id`, `image`, `text`, `answer`, optional `category`), as `vigc questions` writes them.
    """

    def read(self, documents: Sequence[Document]) -> list[Question]:
        return read_records(documents, "questions with their answers, an object a line", _question)

    def parse(self, question: Question, answer: str, setting: str = ANSWER) -> str | None:
        return " ".join(answer.split())

    def score(self, questions: Sequence[Question], predictions: Sequence[Prediction]) -> dict[str, Any]:
        answers = by_question(predictions)
        right = {
            one.question_id: self.parse(one, answers.get(one.question_id) or "") == " ".join(one.answers[0].split()) for one in questions
        }
        found: dict[str, Any] = {"accuracy": percent(sum(right.values()), len(questions)), "num_questions": len(questions)}
        categories = sorted({question.category for question in questions})
        if categories != [""]:
            hits = {name: [right[one.question_id] for one in questions if one.category == name] for name in categories}
            found["by_category"] = {name: percent(sum(of), len(of)) for name, of in hits.items()}
        return found | missing_count([question.question_id for question in questions], answers)


def _question(entry: Entry, reader: Reader) -> Question | None:
    question_id = reader.id(entry, "question_id")
    text = reader.get(entry, "text", str, "the question's text")
    answer = reader.get(entry, "answer", str, "the right answer")
    reader.once(entry.place, question_id, "question")
    if text is None or answer is None:
        return None
    if not answer.strip():
        reader.fault(entry.place, "answer is empty; expected the right answer")
        return None
    image, category = identity(entry.value.get("image")), str(entry.value.get("category") or "")
    return Question(question_id, text, image, answers=(answer,), category=category)
