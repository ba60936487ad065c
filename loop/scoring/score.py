"""`vigc score`: scores prediction files against the data files of a benchmark."""

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
"""Benchmarks that are scored from the predictions alone."""
SYNONYMS = "synonyms.txt"
MAX_NAME_WIDTH = 30
"""Maximum width of a group's name in a table, in characters."""


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
    """Scores by name, in unrounded percent, and counts.

    Args:
        name: a registered benchmark, or a custom one as `module:Name`.
        data: the benchmark's files.
        predictions: the file of answers.
        published: reproduce the known mistakes of the public code.
        synonyms: CHAIR's list; by default `synonyms.txt` beside the data, otherwise our own.
        split: score only the questions of this split; predictions for other questions are ignored.
        allow_missing: count questions without a prediction as wrong.

    Raises:
        UserError: a file cannot be read or has the wrong format; one line per finding.
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
        questions = filter_split(everything, split)
        found = _told(f"{name} cannot read these predictions", read_found)
        return {**benchmark.score(questions, found), "published": published, **listed}


def _chosen_alone(found: list[Prediction], questions: list[Question], name: str, allow_missing: bool) -> list[Prediction]:
    ids = dict.fromkeys(question.question_id for question in questions)
    chosen = [prediction for prediction in found if prediction.question_id in ids]
    findings = [] if allow_missing else missing_findings(name, ids, {prediction.question_id for prediction in chosen})
    if findings:
        raise BenchmarkDataError(findings)
    return chosen


def build(name: str, data: Sequence[Path], published: bool = False, synonyms: Path | None = None) -> tuple[Benchmark, dict[str, str]]:
    """The benchmark `name`, and the synonym list it uses, if any.

    Raises:
        UserError: the benchmark does not exist, or the list cannot be used.
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
        UserError: no file is given, a file cannot be read or has the wrong format, or two files share a question id.
    """
    if not data:
        if name in WITHOUT_DATA:
            return []
        raise UserError(f"{name} needs its data; give the file with --data")
    questions = _told(f"{name} cannot read this data", lambda: benchmark.read([read_document(file) for file in data]))
    twice = [one for one, num in Counter(question.question_id for question in questions).items() if num > 1]
    if twice:
        raise UserError(
            f"{len(twice)} question ids, such as {printable(twice[0])}, are in more than one --data file; score the files one by one"
        )
    return questions


def filter_split(questions: list[Question], split: str | None) -> list[Question]:
    """The questions of a split; all questions if it is None.

    Raises:
        UserError: the split has no questions.
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
    """Disable garbage collection: files are millions of small objects without cycles, and searching them takes a third of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _told(what: str, read: Callable[[], T]) -> T:
    """Call `read` and turn its findings into a `UserError` that begins with `what`."""
    try:
        return read()
    except BenchmarkDataError as error:
        many = len(error.findings)
        raise UserError(f"{what} ({many} faults); is it the right file?\n{error}" if many > 1 else f"{what}: {error}") from error


def print_scores(console: Console, name: str, scores: Mapping[str, Any]) -> None:
    """Print the scores as tables, rounded to two places."""
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
    width = min(MAX_NAME_WIDTH, max(map(len, rows)))  # names take precedence over the headings of figures
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
    """Read a file of questions, answers or reviews.

    Raises:
        UserError: the file cannot be read.
        BenchmarkDataError: it is not JSON, JSON Lines or a table.
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
