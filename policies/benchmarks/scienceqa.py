"""ScienceQA (Lu et al. 2022, arXiv 2209.09513): accuracy over all questions, over those with an image, and by subject.

Reading an answer: the public code (LLaVA's `eval_science_qa.py`) takes a bare letter from A to E, a letter before ". ", or exactly one
"The answer is X."; `B.`, `(B)`, `b` and `The answer is B` cannot be read there, and of `A. The answer is B.` it takes A. By default
`policies.benchmarks.options` reads them, and treats the last one as naming none. `published` reads as the public code. Unreadable answers
are wrong, and counted in `num_unparsable`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from policies.benchmarks.base import ANSWER, BENCHMARKS, Prediction, Question
from policies.benchmarks.documents import BenchmarkDataError, Document, Entry, Reader
from policies.benchmarks.options import read_option
from policies.benchmarks.predictions import LetterBenchmark

LETTERS = "ABCDE"
_STATED = re.compile(r"The answer is ([A-Z]).")


def parse_letter_published(answer: str) -> str | None:
    """The letter that LLaVA's code reads, or None; it may be beyond the choices."""
    if len(answer) == 1 and answer in LETTERS:
        return answer
    if len(answer) >= 3 and answer[0] in LETTERS and answer[1:3] == ". ":
        return answer[0]
    stated = _STATED.findall(answer)
    return stated[0] if len(stated) == 1 else None


@BENCHMARKS.register("scienceqa")
class ScienceQa(LetterBenchmark):
    """`accuracy` and `image_accuracy`, and `by_subject` if the data names subjects.

    Data: the official `problems.json` (`{id: {"question", "choices", "answer", "hint", "image", "subject", "split"}}`), or a list of
    questions (`id`, `text`, `choices`, `answer`, `has_image`, optional `details`).
    """

    def read(self, documents: Sequence[Document]) -> list[Question]:
        return [question for document in documents for question in _questions(document)]

    def parse(self, question: Question, answer: str, setting: str = ANSWER) -> str | None:
        """The letter of a choice."""
        if self.published:
            letter = parse_letter_published(answer)
            return letter if letter and ord(letter) - ord("A") < len(question.choices) else None
        index = read_option(answer, question.choices)
        return None if index is None else chr(ord("A") + index)

    def score(self, questions: Sequence[Question], predictions: Sequence[Prediction]) -> dict[str, Any]:
        graded = self.graded(questions, predictions)
        with_image = [question for question in questions if question.image]
        found: dict[str, Any] = {"accuracy": graded.accuracy(questions), "image_accuracy": graded.accuracy(with_image)}
        found |= {"num_questions": len(questions), "num_image_questions": len(with_image), "num_unparsable": graded.num_unparsable}
        subjects = sorted({question.category for question in questions} - {""})
        if subjects:
            found["by_subject"] = graded.by("category", questions, subjects)
        return found | graded.missing


def _questions(document: Document) -> list[Question]:
    reader, questions = Reader(document), []
    for entry, question_id in _entries(document, reader):
        details = entry.value.get("details") if isinstance(entry.value.get("details"), dict) else entry.value
        text = reader.get(entry, "question" if "question" in entry.value else "text", str, "the question's text")
        choices = reader.texts(entry, "choices", "a list of texts")
        right = reader.get(entry, "answer", int, "the index of the right choice")
        reader.once(entry.place, question_id, "question")
        if text is None or right is None:
            continue
        if not 0 <= right < len(choices):
            reader.fault(entry.place, f"answer is {right}; there are {len(choices)} choices")
            continue
        # The file name if the data has it; the id of a question whose picture is not named.
        image = str(entry.value.get("image") or (question_id if entry.value.get("has_image") is True else ""))
        context = str(entry.value.get("hint") or "")  # the list's texts already contain their hints
        subject, split = str(details.get("subject") or ""), str(entry.value.get("split") or "")
        letter = chr(ord("A") + right)
        questions.append(Question(question_id, text, image, choices, (letter,), category=subject, split=split, context=context))
    reader.done()
    return questions


def _entries(document: Document, reader: Reader) -> list[tuple[Entry, str]]:
    if document.entries is not None:
        return [(entry, reader.id(entry, "id")) for entry in document.records("ScienceQA's questions")]
    content = document.content
    if not isinstance(content, dict) or not content or not all(isinstance(value, dict) for value in content.values()):
        raise BenchmarkDataError([f"{document.name} holds neither a list of questions nor problems by id"])
    return [(Entry(f"question {question_id}", value), question_id) for question_id, value in content.items()]
