"""SEED-Bench (Li et al. 2023, arXiv 2307.16125): accuracy of four choices, over all questions and by question type.

The file `SEED-Bench.json` has questions about images and about videos; each is a split, and `--split image` chooses those that a model of
images can answer. The release ranks the choices by their likelihood; models that answer in words are scored as LLaVA does
(`convert_seed_for_submission.py`): right is an answer that is the letter itself, which `published` repeats. By default an answer is read by
`policies.benchmarks.options`; one that names no choice is wrong, and counted in `num_unparsable`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from policies.benchmarks.base import ANSWER, BENCHMARKS, Prediction, Question
from policies.benchmarks.documents import BenchmarkDataError, Document, Entry, Reader, identity, kind, read_records, show
from policies.benchmarks.options import read_option
from policies.benchmarks.predictions import LetterBenchmark

LETTERS = "ABCD"


@BENCHMARKS.register("seed-bench")
class SeedBench(LetterBenchmark):
    """`accuracy`, `by_split` if the data has images and videos, and `by_type`.

    Data: `SEED-Bench.json` (`{"question_type": {name: id}, "questions": [{"question_id", "question", "choice_a" to "choice_d", "answer",
    "data_id", "data_type", "question_type_id"}]}`), or its questions alone, as a list.
    """

    def read(self, documents: Sequence[Document]) -> list[Question]:
        return [question for document in documents for question in _questions(document)]

    def parse(self, question: Question, answer: str, setting: str = ANSWER) -> str | None:
        """The letter of a choice."""
        if self.published:
            return answer if answer in set(LETTERS) else None
        index = read_option(answer, question.choices)
        return None if index is None else LETTERS[index]

    def score(self, questions: Sequence[Question], predictions: Sequence[Prediction]) -> dict[str, Any]:
        graded = self.graded(questions, predictions)
        found: dict[str, Any] = {"accuracy": graded.accuracy(questions), "num_questions": len(questions)}
        found["num_unparsable"] = graded.num_unparsable
        splits, types = (list(dict.fromkeys(getattr(q, name) for q in questions)) for name in ("split", "category"))
        if len(splits) > 1:
            found["by_split"] = graded.by("split", questions, splits)
        return found | {"by_type": graded.by("category", questions, types)} | graded.missing


def _questions(document: Document) -> list[Question]:
    content, names = document.content, {}
    if document.entries is None:
        types = content.get("question_type") if isinstance(content, dict) else None
        if not isinstance(types, dict):
            shown = f"{show(types)} ({kind(types)})"
            raise BenchmarkDataError([f"{document.name}: question_type is {shown}; expected an object of names and ids"])
        names = {identity(number): name for name, number in types.items()}
        document = Document(document.name, None, tuple(document.listed("questions")))
    return read_records([document], "SEED-Bench's questions", lambda entry, reader: _question(entry, reader, names))


def _question(entry: Entry, reader: Reader, names: Mapping[str, str]) -> Question | None:
    question_id = reader.id(entry, "question_id")
    text = reader.get(entry, "question", str, "the question's text")
    choices = [reader.get(entry, f"choice_{letter}", (str, int, float), "the choice's text") for letter in LETTERS.lower()]
    answer = reader.get(entry, "answer", str, "the right letter")
    number = reader.id(entry, "question_type_id")
    image = reader.id(entry, "data_id")
    reader.once(entry.place, question_id, "question")
    if text is None or answer is None or None in choices:
        return None
    if answer not in set(LETTERS):
        reader.fault(entry.place, f"answer is {show(answer)}; expected one of {', '.join(LETTERS)}")
        return None
    category, split = names.get(number, number), str(entry.value.get("data_type") or "")
    return Question(question_id, text, image, tuple(map(str, choices)), (answer,), category=category, split=split)
