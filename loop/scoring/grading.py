"""`vigc judge --benchmark mm-vet`: a text model grades a model's answers against the right ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loop.errors import UserError
from loop.monitors.progress import RunProgress
from loop.scoring.judging import Judged, JudgeOptions, read_answers
from loop.scoring.replies import ReplyJournal, journal_beside
from loop.scoring.score import read_document
from loop.store.files import write_lines
from policies.benchmarks import BENCHMARKS, BenchmarkDataError, Question
from policies.chat import ChatModel
from policies.scoring.grading import OWN_PROMPT, Answered, Grade, grade_ask, parse_grade, record_of
from policies.texts import TextFileError, decoded_text

BENCHMARK = "mm-vet"


@dataclass(frozen=True, slots=True)
class ToGrade:
    """What a judge is asked about."""

    questions: list[Question]
    answered: list[Answered]
    """In the order of the questions."""
    prompt: str
    """Rules and examples before the row to complete."""


def read_to_grade(questions: Path, answers: Path, rules: Path | None) -> ToGrade:
    """The answers to grade.

    Args:
        questions: MM-Vet's questions.
        answers: of the model, by question.
        rules: a text file with MM-Vet's prompt; None for our own.

    Raises:
        UserError: a file cannot be read or does not match the questions; one line per finding.
    """
    try:
        asked = BENCHMARKS.build(BENCHMARK).read([read_document(questions)])
        given = read_answers(answers, asked)
    except BenchmarkDataError as error:
        raise UserError(str(error)) from error
    answered = [Answered(one.question_id, one.text, one.answers[0], given[one.question_id]) for one in asked]
    return ToGrade(asked, answered, _prompt(rules))


def _prompt(rules: Path | None) -> str:
    if rules is None:
        return OWN_PROMPT
    try:
        text = decoded_text(rules.read_bytes())
    except (OSError, TextFileError) as error:
        raise UserError(f"--rules {rules} cannot be read: {error}; expected a text file with MM-Vet's prompt") from error
    if "|" not in text:
        raise UserError(
            f"--rules {rules} has no table row; expected MM-Vet's prompt, whose examples are rows such as QUESTION | TRUTH | ..."
        )
    return text


def grade(todo: ToGrade, model: ChatModel, model_name: str, out: Path, options: JudgeOptions, progress: RunProgress) -> Judged:
    """Ask the judge about every answer, write one line per answer to `out`, and score them. Replies are kept in `OUT.replies.sqlite`.

    Raises:
        UserError: `out` cannot be written.
        EndpointError: the endpoint stopped answering. Replies so far are kept.
    """
    with (
        ReplyJournal(journal_beside(out), model, model_name) as journal,
        progress.stage("grade", total=len(todo.answered), unit="answers") as stage,
    ):
        grades = _grades(journal, todo, options, stage.advance)
    write_lines(out, [record_of(one, grades[one.question_id]) for one in todo.answered])
    benchmark = BENCHMARKS.build(BENCHMARK)
    scores = benchmark.score(todo.questions, benchmark.read_predictions(read_document(out), todo.questions))
    return Judged(scores, journal.num_asked, sum(bool(one.failure) for one in grades.values()), journal.usage)


def _grades(journal: ReplyJournal, asked: ToGrade, options: JudgeOptions, done: Callable[[], None]) -> dict[str, Grade]:
    """All grades. Replies without one are requested again with another seed while attempts are left."""
    answered = {one.question_id: one for one in asked.answered}
    replies = journal.complete_until_read(
        answered, options.num_attempts,
        lambda key, attempt: grade_ask(answered[key], asked.prompt, attempt, options.max_tokens, options.temperature),
        lambda reply: parse_grade(reply.text), done,
    )  # fmt: skip
    return {key: Grade(one.reply.text, one.verdict, one.num_attempts, one.reply.shortfall) for key, one in replies.items()}
