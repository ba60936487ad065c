"""MME (Fu et al. 2023, arXiv 2306.13394): two yes-or-no questions about each image, in 14 tasks of perception and cognition.

A task's score is its accuracy plus its accuracy+ (the share of images both of whose questions are answered right), 200 at most; perception
and cognition are the sums of their tasks' scores, 2000 and 800 at most. The public code (`eval_tool/calculation.py` of the release) calls
an answer yes or no by its first four characters, in lower case, so that "Is it? No" is neither and "Nothing, yes" is no; `published` reads
as it does. By default an answer is read by `policies.answers.yes_no`. One that is neither is wrong, and counted in `num_unparsable`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from policies.answers.yes_no import NO, YES, parse_yes_no
from policies.benchmarks.base import ANSWER, BENCHMARKS, Prediction, Question, by_question, percent
from policies.benchmarks.documents import Document, Entry, Reader, identity, show
from policies.benchmarks.predictions import AnswerBenchmark, missing_count, read_predictions

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
TASKS = PERCEPTION + COGNITION
_NUM_READ = 4
"""Characters at the beginning of an answer that the public code reads."""


def parse_yes_no_mme(answer: str) -> str | None:
    """`yes`, `no` or None as MME's code reads it."""
    start = answer.lower()[:_NUM_READ]
    return YES if YES in start else NO if NO in start else None


@BENCHMARKS.register("mme")
class Mme(AnswerBenchmark):
    """`perception` and `cognition`, as far as the data has their tasks, and accuracy, accuracy+ and score of each task in `by_task`.

    Data: the files of the release's eval_tool, `TASK.txt` (image, question and answer, separated by tabs), or records with `question_id`,
    `question`, `answer` and `category`. Both questions about an image have the same id there (`existence/000000006040.png`): they are told
    apart as `ID#1` and `ID#2`, in their order. Predictions may use these ids, or be records that repeat the id in the same order.
    """

    def read(self, documents: Sequence[Document]) -> list[Question]:
        return [question for document in documents for question in _questions(document)]

    def read_predictions(self, document: Document, questions: Sequence[Question], allow_missing: bool = False) -> list[Prediction]:
        return read_predictions(_numbered(document), {question.question_id: None for question in questions}, allow_missing=allow_missing)

    def parse(self, question: Question, answer: str, setting: str = ANSWER) -> str | None:
        return parse_yes_no_mme(answer) if self.published else parse_yes_no(answer)

    def score(self, questions: Sequence[Question], predictions: Sequence[Prediction]) -> dict[str, Any]:
        answers = by_question(predictions)
        said = {q.question_id: self.parse(q, answers[q.question_id]) for q in questions if q.question_id in answers}
        hits: dict[str, dict[str, list[bool]]] = {}
        for question in questions:
            images = hits.setdefault(question.category, {})
            images.setdefault(question.group, []).append(said.get(question.question_id) == question.answers[0])
        tasks = {task: _task_scores(list(hits[task].values())) for task in TASKS if task in hits}
        found: dict[str, Any] = {}
        for name, of in (("perception", PERCEPTION), ("cognition", COGNITION)):
            if there := [tasks[task]["score"] for task in of if task in tasks]:
                found[name] = sum(there)
        found |= {"num_questions": len(questions), "num_unparsable": sum(answer is None for answer in said.values()), "by_task": tasks}
        return found | missing_count([question.question_id for question in questions], answers)


def _task_scores(images: Sequence[Sequence[bool]]) -> dict[str, float]:
    accuracy = percent(sum(map(sum, images)), sum(map(len, images)))
    accuracy_plus = percent(sum(map(all, images)), len(images))
    return {"accuracy": accuracy, "accuracy_plus": accuracy_plus, "score": accuracy + accuracy_plus}


def _questions(document: Document) -> list[Question]:
    reader = Reader(document)
    is_table = document.entries is not None and all(isinstance(entry.value, list) for entry in document.entries)
    rows = _from_table(document, reader) if is_table else _from_records(document, reader)
    counts, seen = Counter(shared for _, shared, *_ in rows), Counter[str]()
    questions = []
    for place, shared, image, text, answer, task in rows:
        seen[shared] += 1
        label = answer.strip().lower()
        if task not in TASKS:
            reader.fault(place, f"the task is {show(task)}; expected one of {', '.join(TASKS)}")
        if label not in (YES, NO):
            reader.fault(place, f"the answer is {show(answer)}; expected Yes or No")
        question_id = f"{shared}#{seen[shared]}" if counts[shared] > 1 else shared
        questions.append(Question(question_id, text, image, answers=(label,), category=task, group=f"{task}/{image}"))
    reader.done()
    return questions


Row = tuple[str, str, str, str, str, str]
"""Place, id (often of both questions about an image), image, question, answer, task."""


def _from_table(document: Document, reader: Reader) -> list[Row]:
    """The rows of `TASK.txt`. A fourth column, the answers of a model, is not read."""
    task, rows = document.name.removesuffix(".txt"), []
    for place, cells in document.entries or ():
        if len(cells) < 3:
            reader.fault(place, f"{len(cells)} columns; expected image, question and answer, separated by tabs")
            continue
        image = f"{task}/{cells[0]}"
        rows.append((place, image, image, *cells[1:3], task))
    return rows


def _from_records(document: Document, reader: Reader) -> list[Row]:
    rows = []
    for entry in document.records("MME's records, or the file TASK.txt of its eval_tool"):
        shared = reader.id(entry, "question_id")
        text = reader.get(entry, "question", str, "the question's text")
        answer = reader.get(entry, "answer", str, "Yes or No")
        task = reader.get(entry, "category", str, "the name of a task")
        if text is None or answer is None or task is None:
            continue
        image = entry.value.get("image")
        rows.append((entry.place, shared, image if isinstance(image, str) and image else shared, text, answer, task))
    return rows


def _numbered(document: Document) -> Document:
    """The predictions with an id of their own for both of two records that share one."""
    if document.entries is None:
        return document
    ids = [identity(entry.value.get("question_id")) if isinstance(entry.value, dict) else "" for entry in document.entries]
    counts, seen, entries = Counter(ids), Counter[str](), []
    for one, entry in zip(ids, document.entries, strict=True):
        seen[one] += 1
        shared = one and counts[one] > 1 and "#" not in one
        entries.append(Entry(entry.place, {**entry.value, "question_id": f"{one}#{seen[one]}"}) if shared else entry)
    return Document(document.name, document.content, tuple(entries))
