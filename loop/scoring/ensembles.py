"""`vigc ensemble`: combines the answers of a model that sees the images with those of a text-only model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loop.errors import UserError
from loop.monitors.progress import RunProgress
from loop.scoring.replies import ReplyJournal, journal_beside
from loop.scoring.score import build, filter_split, read_document, read_questions
from loop.store.files import write_lines
from policies.benchmarks import Benchmark, BenchmarkDataError, Question
from policies.benchmarks.base import ANSWER
from policies.chat import Ask, ChatModel
from policies.scoring.ensembles import Ensemble, Origin, choices_of, complement, is_disputed, judge_ask, judged, text_ask

_MAX_TOKENS = 1024
"""Limit on a reply: reasoning, then a letter."""


@dataclass(frozen=True, slots=True)
class EnsembleFiles:
    """The answers to combine."""

    benchmark: str
    data: tuple[Path, ...]
    predictions: Path
    """Of the model that sees the images, in the format of `vigc score`."""
    text_predictions: Path | None = None
    """Predictions of the text model; None to ask it."""
    split: str | None = None


@dataclass(frozen=True, slots=True)
class Combined:
    """The result of an ensemble."""

    scores: dict[str, Any]
    """As from `vigc score`, with the origins of answers counted in `by_origin`."""
    num_asked: int
    """Requests made by this process."""
    num_failed: int
    """Requests without a reply; their answers are missing."""


def combine(files: EnsembleFiles, how: Ensemble, model: ChatModel | None, model_name: str, out: Path, progress: RunProgress) -> Combined:
    """Write a prediction for every question to `out`, and score them. Replies are kept in `OUT.replies.sqlite`.

    Raises:
        UserError: a file cannot be used, or a text model is needed and none is given.
        EndpointError: the endpoint stopped answering. Replies so far are kept.
    """
    if model is None and (how is Ensemble.JUDGE or files.text_predictions is None):
        what = (
            "the ensemble judge asks the text model again"
            if files.text_predictions
            else "without --text-predictions the text model is asked"
        )
        raise UserError(f"{what}, but none is given; use --endpoint URL and --model NAME, or --text-model PATH")
    try:
        benchmark, everything, questions = _questions(files)
        seen = _read(benchmark, everything, files.predictions)
        read = None if files.text_predictions is None else _read(benchmark, everything, files.text_predictions)
        if model is None:
            assert read is not None
            return _written(benchmark, questions, seen, read, None, out, Combined({}, 0, 0))
        with ReplyJournal(journal_beside(out), model, model_name) as journal:
            failed: Counter[str] = Counter()
            if read is None:
                read = _replies(
                    journal, [text_ask(benchmark, one, _MAX_TOKENS) for one in questions], failed, progress, "ask the text model"
                )
            final = None
            if how is Ensemble.JUDGE:
                disputed = _disputed(benchmark, questions, seen, read)
                asks = [judge_ask(benchmark, one, read[one.question_id], seen[one.question_id], _MAX_TOKENS) for one in disputed]
                final = _replies(journal, asks, failed, progress, "ask it again")
        return _written(benchmark, questions, seen, read, final, out, Combined({}, journal.num_asked, failed.total()))
    except BenchmarkDataError as error:
        raise UserError(str(error)) from error


def _questions(files: EnsembleFiles) -> tuple[Benchmark, list[Question], list[Question]]:
    """The benchmark, all questions of its data, and those of the split."""
    benchmark, _ = build(files.benchmark, files.data)
    everything = read_questions(files.benchmark, benchmark, files.data)
    questions = filter_split(everything, files.split)
    if benchmark.settings != (ANSWER,) or not all(question.choices for question in questions):
        raise UserError(f"{files.benchmark} has questions without lettered choices; an ensemble is for such as scienceqa and mmbench")
    return benchmark, everything, questions


def _read(benchmark: Benchmark, questions: Sequence[Question], path: Path) -> dict[str, str]:
    return {one.question_id: one.answer for one in benchmark.read_predictions(read_document(path), questions, allow_missing=True)}


def _replies(journal: ReplyJournal, asks: Sequence[Ask], failed: Counter[str], progress: RunProgress, name: str) -> dict[str, str]:
    found = {}
    with progress.stage(name, total=len(asks), unit="questions") as stage:
        for reply in journal.complete(asks):
            if reply.shortfall:
                failed[reply.key] += 1
            else:
                found[reply.key] = reply.text
            stage.advance(1)
    return found


def _disputed(benchmark: Benchmark, questions: Sequence[Question], seen: dict[str, str], read: dict[str, str]) -> list[Question]:
    by_model, by_text = choices_of(benchmark, questions, seen), choices_of(benchmark, questions, read)
    return [one for one in questions if is_disputed(by_text[one.question_id], by_model[one.question_id])]


def _written(
    benchmark: Benchmark, questions: Sequence[Question], seen: dict[str, str], read: dict[str, str], final: dict[str, str] | None,
    out: Path, counts: Combined,
) -> Combined:  # fmt: skip
    by_model, by_text, last = (choices_of(benchmark, questions, answers) for answers in (seen, read, final or {}))
    origins: Counter[Origin] = Counter()
    lines = []
    for one in questions:
        text, model = by_text[one.question_id], by_model[one.question_id]
        answer, origin = judged(text, model, last[one.question_id]) if final is not None else complement(text, model)
        origins[origin] += 1
        lines.append({"question_id": one.question_id, "answer": answer, "from": str(origin)})
    write_lines(out, lines)
    scores = benchmark.score(questions, benchmark.read_predictions(read_document(out), questions))
    by_origin = {str(origin): origins[origin] for origin in Origin if origins[origin]}
    return Combined({**scores, "by_origin": by_origin}, counts.num_asked, counts.num_failed)
