"""`vigc score`: predictions in files against the files of one of the field's benchmarks."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Column, Table

from loop.errors import UserError, printable
from policies.benchmarks import BENCHMARKS, Benchmark, BenchmarkDataError, Document, Prediction, Question, parse_document
from policies.benchmarks.predictions import missing_findings
from policies.registry import UnknownPolicyError
from policies.texts import TextFileError, decoded_text

T = TypeVar("T")

CHAIR = "chair"
WITHOUT_DATA = ("llava-bench",)
"""Benchmarks whose predictions hold all that there is to score."""
SYNONYMS = "synonyms.txt"
MAX_NAME_WIDTH = 30
"""Characters of a group's name on one line of a table."""


def score_files(
    name: str,
    data: Sequence[Path],
    predictions: Path,
    *,
    published: bool = False,
    synonyms: Path | None = None,
    split: str | None = None,
    allow_missing: bool = False,
) -> dict[str, Any]:
    """Scores by name, in percent and unrounded, and counts.

    Args:
        name: of a registered benchmark, or the user's own as `module:Name`.
        data: the benchmark's files.
        predictions: the file of answers.
        published: repeat the public code in what it is known to do wrong.
        synonyms: CHAIR's list; by default `synonyms.txt` beside the data, or else our own.
        split: score only the questions that the data counts to this split; predictions for the others may be there.
        allow_missing: count questions without a prediction as wrong.

    Raises:
        UserError: a file cannot be read or is not what the benchmark takes; one line for each finding.
    """
    benchmark, listed = build(name, data, published, synonyms)

    def read_found() -> list[Prediction]:
        document = read_document(predictions)
        if split is None:
            return benchmark.read_predictions(document, everything, allow_missing)
        found = benchmark.read_predictions(document, everything, allow_missing=True)
        return _chosen_alone(found, questions, document.name, allow_missing)

    with _no_collection():
        everything = read_questions(name, benchmark, data)
        questions = of_split(everything, split)
        found = _told(f"{name} cannot take these predictions", read_found)
        return {**benchmark.score(questions, found), "published": published, **listed}


def _chosen_alone(found: list[Prediction], questions: list[Question], name: str, allow_missing: bool) -> list[Prediction]:
    ids = dict.fromkeys(question.question_id for question in questions)
    chosen = [prediction for prediction in found if prediction.question_id in ids]
    findings = [] if allow_missing else missing_findings(name, ids, {prediction.question_id for prediction in chosen})
    if findings:
        raise BenchmarkDataError(findings)
    return chosen


def build(name: str, data: Sequence[Path], published: bool = False, synonyms: Path | None = None) -> tuple[Benchmark, dict[str, str]]:
    """The benchmark `name`, and which synonym list it uses, where it uses one.

    Raises:
        UserError: there is no such benchmark, or the list cannot be used.
    """
    options: dict[str, Any] = {"published": True} if published else {}
    listed: dict[str, str] = {}
    if synonyms is not None and name != CHAIR:
        raise UserError(f"--synonyms is for {CHAIR}; leave it out for {name}")
    if name == CHAIR:
        beside = next((file.parent / SYNONYMS for file in data if (file.parent / SYNONYMS).is_file()), None)
        chosen = synonyms or beside
        listed = {"synonyms": str(chosen) if chosen else "our own list (no synonyms.txt beside the data)"}
        if chosen:
            options["synonyms"] = _decoded(chosen)
    try:
        return BENCHMARKS.build(name, options), listed
    except UnknownPolicyError as error:
        raise UserError(str(error)) from error


def read_questions(name: str, benchmark: Benchmark, data: Sequence[Path]) -> list[Question]:
    """The questions of a benchmark's files.

    Raises:
        UserError: no file was given, one cannot be read or is not what the benchmark takes, or two hold questions of the same id.
    """
    if not data:
        if name in WITHOUT_DATA:
            return []
        raise UserError(f"{name} needs its data; give the file with --data")
    questions = _told(f"{name} cannot take this data", lambda: benchmark.read([read_document(file) for file in data]))
    twice = [one for one, num in Counter(question.question_id for question in questions).items() if num > 1]
    if twice:
        raise UserError(
            f"{len(twice)} question ids, such as {printable(twice[0])}, are in more than one --data file; score the files one by one"
        )
    return questions


def of_split(questions: list[Question], split: str | None) -> list[Question]:
    """Those that the data counts to the split; all where it is None.

    Raises:
        UserError: the split has no question.
    """
    if split is None:
        return questions
    chosen = [question for question in questions if question.split == split]
    if not chosen:
        splits = sorted({question.split for question in questions} - {""})
        raise UserError(f"--split is {split!r}; the data has {', '.join(splits) if splits else 'no splits'}")
    return chosen


@contextmanager
def _no_collection() -> Iterator[None]:
    """Files are millions of small objects, none of them in a cycle: looking for cycles among them is a third of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _told(what: str, read: Callable[[], T]) -> T:
    """What `read` gives; its findings become an error that says first what they are about, where they are several."""
    try:
        return read()
    except BenchmarkDataError as error:
        many = len(error.findings)
        raise UserError(f"{what} ({many} faults); is it the right file?\n{error}" if many > 1 else f"{what}: {error}") from error


def print_scores(console: Console, name: str, scores: Mapping[str, Any]) -> None:
    """The scores as tables, rounded to two places."""
    table = Table(name, "", box=None)
    for key, value in scores.items():
        if not isinstance(value, Mapping):
            table.add_row(_words(key), _shown(value))
    console.print(table)
    for key, groups in scores.items():
        if isinstance(groups, Mapping) and groups:
            _print_groups(console, key, groups)


def _print_groups(console: Console, key: str, groups: Mapping[str, Any]) -> None:
    rows = {name: value if isinstance(value, Mapping) else {"score": value} for name, value in groups.items()}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    width = min(MAX_NAME_WIDTH, max(map(len, rows)))  # the names, before the figures' headings, are what must be read
    table = Table(Column(_words(key), min_width=width, overflow="fold"), *map(_words, columns), box=None)
    for name, row in rows.items():
        table.add_row(_escaped(name), *(_shown(row.get(column, "")) for column in columns))
    console.print()
    console.print(table)


def _words(key: str) -> str:
    return key.replace("_", " ")


def _shown(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else _escaped(str(value))


def _escaped(text: str) -> str:
    return printable(text).replace("[", r"\[")


def read_document(path: Path) -> Document:
    """A file of questions, answers or reviews.

    Raises:
        UserError: it cannot be read.
        BenchmarkDataError: it is no JSON, JSON Lines or table.
    """
    return parse_document(path.name, _bytes(path))


def _decoded(path: Path) -> str:
    try:
        return decoded_text(_bytes(path))
    except TextFileError as error:
        raise UserError(f"{path} {error.what}") from error


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    except ValueError as error:  # a null character in the name
        raise UserError(f"cannot read {str(path)!r}: {error}; check the path") from error
