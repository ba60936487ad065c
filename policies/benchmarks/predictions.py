"""Read predictions: one JSON object `{question id: answer}`, or records with a question id and an answer."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from policies.benchmarks.base import ANSWER, OPTION_LETTER, Prediction, Question, by_question, percent, with_options
from policies.benchmarks.documents import BenchmarkDataError, Check, Document, Entry, Reader, show, text_only

MAX_MISSING = 10
"""Number of missing questions that an error names."""


@dataclass(frozen=True, slots=True)
class Fields:
    """Names of the fields of a record."""

    key: str = "question_id"
    values: tuple[str, ...] = (ANSWER,)
    """One field: the answer is its value. Several: the answer is an object of the present ones."""
    groups: tuple[str, ...] = ()
    """Optional fields that distinguish sets of predictions; the first present one counts."""


def fields_in(document: Document, own: Fields) -> Fields:
    """The fields of a benchmark's own format of results if the file's first record has their key, else the usual ones."""
    first = document.entries[0].value if document.entries else None
    return own if isinstance(first, dict) and own.key in first and Fields.key not in first else Fields()


def read_predictions(
    document: Document,
    ids: Collection[str],
    fields: Fields = Fields(),
    check: Check = text_only,
    *,
    allow_missing: bool = False,
    hint: str = "",
) -> list[Prediction]:
    """The predictions of a file, in its order.

    Args:
        document: the file.
        ids: the existing questions.
        fields: names of a record's fields.
        check: returns what is wrong with an answer.
        allow_missing: whether questions may go without a prediction.
        hint: what to do about missing ones, beside `--allow-missing`.

    Raises:
        BenchmarkDataError: each fault with its line or id.
    """
    reader = Reader(document)
    known = ids if isinstance(ids, set | frozenset | dict) else set(ids)
    found: dict[tuple[str, str], Prediction] = {}
    places: dict[tuple[str, str], str] = {}
    for place, prediction in _predictions(document, fields, reader):
        where = (prediction.group, prediction.question_id)
        if where in found:
            reader.fault(place, f"{fields.key} {prediction.question_id} appears twice, first at {places[where]}; expected it once")
            continue
        prediction = prediction._replace(answer=_without_absent(prediction.answer))
        found[where], places[where] = prediction, place
        if prediction.question_id not in known:
            reader.fault(place, f"{fields.key} {show(prediction.question_id)} is not in the data; is this its file?")
        elif wrong := check(prediction.answer):
            reader.fault(place, wrong)
    _check_missing(reader, known, found, allow_missing, hint)
    reader.done()
    return list(found.values())


def _without_absent(answer: Any) -> Any:
    """The answer, with NaN, which stands for a missing one in tables of pandas, as an empty text."""
    if isinstance(answer, dict):
        return {name: _without_absent(value) if not isinstance(value, dict) else value for name, value in answer.items()}
    return "" if isinstance(answer, float) and math.isnan(answer) else answer


def _expected(fields: Fields) -> str:
    return f"{fields.key} and {' or '.join(fields.values)}"


def _predictions(document: Document, fields: Fields, reader: Reader) -> list[tuple[str, Prediction]]:
    content = document.content
    if document.entries is None and isinstance(content, dict) and not (fields.key in content and set(fields.values) & set(content)):
        return [(f"{fields.key} {key}", Prediction(key, value)) for key, value in content.items()]
    entries = document.entries if document.entries is not None else (Entry("the whole file", content),)
    if not entries:
        raise BenchmarkDataError([f"{document.name} is empty; expected predictions"])
    found = []
    for entry in entries:
        if not isinstance(entry.value, dict):
            reader.fault(entry.place, f"{show(entry.value)}; expected an object with {_expected(fields)}")
            continue
        key, answer = _key(entry, fields, reader), _answer(entry, fields, reader)
        if key and answer is not _ABSENT:
            group = next((str(entry.value[name]) for name in fields.groups if name in entry.value), "")
            found.append((entry.place, Prediction(key, answer, group)))
    return found


_ABSENT = object()


def _key(entry: Entry, fields: Fields, reader: Reader) -> str:
    if fields.key not in entry.value:
        reader.fault(entry.place, f"no field {fields.key!r} among {show(sorted(entry.value))}; expected {_expected(fields)}")
        return ""
    return reader.id(entry, fields.key)


def _answer(entry: Entry, fields: Fields, reader: Reader) -> Any:
    there = {name: entry.value[name] for name in fields.values if name in entry.value}
    if there:
        return there if len(fields.values) > 1 else next(iter(there.values()))
    names = " or ".join(map(repr, fields.values))
    reader.fault(entry.place, f"no field {names} among {show(sorted(entry.value))}; expected {_expected(fields)}")
    return _ABSENT


def _check_missing(
    reader: Reader, known: Collection[str], found: dict[tuple[str, str], Prediction], allow_missing: bool, hint: str
) -> None:
    given = {prediction.question_id for prediction in found.values()}
    if not given & set(known) and not reader.findings:
        reader.findings.append(f"{reader.name} holds no prediction for any question of the data; expected its question ids")
    if not allow_missing:
        reader.findings += missing_findings(reader.name, known, given, hint)


def missing_findings(name: str, known: Collection[str], given: Collection[str], hint: str = "") -> list[str]:
    """One finding if a file of predictions lacks some of the `known` questions, else none."""
    missing = [one for one in known if one not in given]
    if not missing:
        return []
    shown = ", ".join(missing[:MAX_MISSING]) + (", ..." if len(missing) > MAX_MISSING else "")
    advice = f"predict them, {hint}or count them as wrong with --allow-missing"
    return [f"{name} has no prediction for {len(missing)} of {len(known)} questions ({shown}); {advice}"]


def missing_count(ids: Sequence[str], answers: Collection[str]) -> dict[str, int]:
    """`num_missing`, where any are."""
    num = sum(one not in answers for one in ids)
    return {"num_missing": num} if num else {}


class AnswerBenchmark:
    """Base of benchmarks that ask each question in one way and score one answer to each."""

    settings: tuple[str, ...] = (ANSWER,)

    def __init__(self, published: bool = False) -> None:
        self.published = published

    def read_predictions(self, document: Document, questions: Sequence[Question], allow_missing: bool = False) -> list[Prediction]:
        return read_predictions(document, {question.question_id: None for question in questions}, allow_missing=allow_missing)

    def prompt(self, question: Question, setting: str = ANSWER) -> str:
        return question.text


class LetterBenchmark(AnswerBenchmark):
    """Base of benchmarks whose answers are letters of choices. A subclass has `parse`, which returns a letter."""

    def read_predictions(self, document: Document, questions: Sequence[Question], allow_missing: bool = False) -> list[Prediction]:
        ids, splits = {question.question_id: None for question in questions}, sorted({question.split for question in questions})
        hint = f"choose one of the splits {', '.join(splits)} with --split, " if len(splits) > 1 else ""
        return read_predictions(document, ids, allow_missing=allow_missing, hint=hint)

    def prompt(self, question: Question, setting: str = ANSWER) -> str:
        return with_options(question, OPTION_LETTER)

    def parse(self, question: Question, answer: str, setting: str = ANSWER) -> str | None:
        raise NotImplementedError

    def graded(self, questions: Sequence[Question], predictions: Sequence[Prediction]) -> Graded:
        """Which questions are answered with the right letter."""
        answers = by_question(predictions)
        letters = {q.question_id: self.parse(q, answers[q.question_id]) for q in questions if q.question_id in answers}
        right = {question.question_id: letters.get(question.question_id) == question.answers[0] for question in questions}
        num_unparsable = sum(letter is None for letter in letters.values())
        return Graded(right, num_unparsable, missing_count([question.question_id for question in questions], answers))


@dataclass(frozen=True, slots=True)
class Graded:
    """Answers to questions with one right letter."""

    right: dict[str, bool]
    """By question; a missing answer is wrong."""
    num_unparsable: int
    missing: dict[str, int]
    """See `missing_count`."""

    def accuracy(self, questions: Sequence[Question]) -> float:
        """Share of these questions that are answered right, in percent."""
        return percent(sum(self.right[question.question_id] for question in questions), len(questions))

    def by(self, field: str, questions: Sequence[Question], values: Sequence[str]) -> dict[str, float]:
        """The accuracy for each value of a question's field."""
        return {value: self.accuracy([one for one in questions if getattr(one, field) == value]) for value in values}
