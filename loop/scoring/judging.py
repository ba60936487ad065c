"""`vigc judge`: a text model compares a model's answers with reference answers, question by question."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loop.errors import UserError
from loop.monitors.progress import RunProgress
from loop.scoring.replies import ReplyJournal, journal_beside
from loop.scoring.score import read_document
from loop.store.files import write_lines
from policies.answers.reasoning import final_text
from policies.benchmarks import BENCHMARKS, BenchmarkDataError, Document, Question
from policies.benchmarks.base import Prediction
from policies.benchmarks.documents import Entry, Reader, identity
from policies.benchmarks.predictions import Fields, read_predictions
from policies.chat import ChatModel, Usage
from policies.scoring.judging import OWN_RULES, Look, Pair, Review, RuleError, judge_ask, read_rules, record_of, rule_for

BENCHMARK = "llava-bench"
_ANSWERS = Fields(values=("answer", "text"))
_NUM_SHOWN = 10


@dataclass(frozen=True, slots=True)
class JudgeFiles:
    """The files to judge."""

    questions: Path
    """LLaVA-Bench's questions."""
    answers: Path
    """The model's answers: `question_id` and `answer` or `text`."""
    reference: Path | None = None
    """Reference answers, likewise; None if the questions contain `gpt4_answer`."""
    context: Path | None = None
    """Descriptions of the images: `image` with `caption` or `captions`, and `instances`; None if the questions contain `captions`."""
    rules: Path | None = None
    """LLaVA's rule.json; None for our own rules."""


@dataclass(frozen=True, slots=True)
class JudgeOptions:
    """How the judge is asked."""

    both_orders: bool = False
    num_attempts: int = 3
    """Requests at most for a review while its first line is not a verdict."""
    max_tokens: int = 1024
    temperature: float = 0.2
    """As in the public code."""

    def __post_init__(self) -> None:
        if self.num_attempts < 1 or self.max_tokens < 1 or not 0.0 <= self.temperature <= 2.0:
            raise UserError(
                f"{self.num_attempts} attempts, {self.max_tokens} tokens and temperature {self.temperature:g} were given; "
                "expected at least 1, at least 1, and 0 to 2"
            )

    @property
    def looks(self) -> tuple[Look, ...]:
        return (Look(False), Look(True)) if self.both_orders else (Look(False),)


@dataclass(frozen=True, slots=True)
class Judged:
    """The result of judging."""

    scores: dict[str, Any]
    """As from `vigc score llava-bench`."""
    num_asked: int
    """Requests made by this process, without replies from the journal."""
    num_failed: int
    """Reviews without a reply, because of a failure, a refusal or reasoning without an end."""
    usage: Usage


def read_pairs(files: JudgeFiles) -> list[Pair]:
    """The pairs of answers to judge, in the order of the questions.

    Raises:
        UserError: a file cannot be read or does not match the questions; one line per finding.
    """
    try:
        return _pairs(files)
    except (BenchmarkDataError, RuleError) as error:
        raise UserError(str(error)) from error


def _pairs(files: JudgeFiles) -> list[Pair]:
    document = read_document(files.questions)
    questions = BENCHMARKS.build(BENCHMARK).read([document])
    given = read_answers(files.answers, questions)
    if files.reference is not None:
        references = read_answers(files.reference, questions)
    else:
        references = {question.question_id: question.answers[0] for question in questions if question.answers}
        _require(references, questions, f"{files.questions} has no gpt4_answer", "give the reference answers with --reference")
    contexts = _contexts(document if files.context is None else read_document(files.context))
    told = {question.question_id: text for question in questions if (text := contexts.get(question.image) or question.context)}
    source = files.context or files.questions
    _require(told, questions, f"{source} has no description of the image", "give captions or boxes of every image with --context")
    rules = OWN_RULES if files.rules is None else read_rules(read_document(files.rules).content)
    return [
        Pair(
            question.question_id, question.category, told[question.question_id], question.text,
            references[question.question_id], given[question.question_id], *rule_for(question.category, rules),
        )
        for question in questions
    ]  # fmt: skip


def judge(pairs: Sequence[Pair], model: ChatModel, model_name: str, out: Path, options: JudgeOptions, progress: RunProgress) -> Judged:
    """Ask the judge about every pair, write one line per pair to `out`, and score them. Replies are kept in `OUT.replies.sqlite`.

    Raises:
        UserError: `out` cannot be written.
        EndpointError: the endpoint stopped answering. Replies so far are kept.
    """
    with (
        ReplyJournal(journal_beside(out), model, model_name) as journal,
        progress.stage("judge", total=len(pairs) * len(options.looks), unit="reviews") as stage,
    ):
        reviews = ask_for_reviews(journal, pairs, options, stage.advance)
    lines = [record_of(pair, [reviews[pair.question_id, look] for look in options.looks]) for pair in pairs]
    write_lines(out, lines)
    benchmark = BENCHMARKS.build(BENCHMARK)
    scores = benchmark.score([], benchmark.read_predictions(read_document(out), []))
    num_failed = sum(bool(review.failure) for review in reviews.values())
    return Judged(scores, journal.num_asked, num_failed, journal.usage)


def ask_for_reviews(
    journal: ReplyJournal, pairs: Sequence[Pair], options: JudgeOptions, done: Callable[[], None]
) -> dict[tuple[str, Look], Review]:
    """All reviews. Those without a verdict are requested again with another seed while attempts are left."""
    asked = {f"{pair.question_id}/{look.name}": (pair, look) for pair in pairs for look in options.looks}
    replies = journal.complete_until_read(
        asked, options.num_attempts,
        lambda key, attempt: judge_ask(*asked[key], attempt, options.max_tokens, options.temperature),
        lambda reply: asked[reply.key][1].scores(reply.text), done,
    )  # fmt: skip
    found: dict[tuple[str, Look], Review] = {}
    for key, one in replies.items():
        pair, look = asked[key]
        found[pair.question_id, look] = Review(look, one.reply.text, one.verdict, one.num_attempts, one.reply.shortfall)
    return found


def read_answers(path: Path, questions: Sequence[Question]) -> dict[str, str]:
    """Question id -> answer, without the reasoning before it; empty if the reasoning never ended."""
    ids = {question.question_id: None for question in questions}
    found: list[Prediction] = read_predictions(read_document(path), ids, _ANSWERS, _no_text)
    return {one.question_id: final_text(_text(one.answer)) for one in found}


def _text(answer: Any) -> str:
    return answer if isinstance(answer, str) else next(iter(answer.values()))


def _no_text(answer: Any) -> str | None:
    texts = [answer] if isinstance(answer, str) else list(answer.values()) if isinstance(answer, dict) else []
    return None if texts and all(isinstance(text, str) for text in texts) else "the answer is not text; expected answer or text"


def _require(found: Mapping[str, str], questions: Sequence[Question], problem: str, remedy: str) -> None:
    missing = [question.question_id for question in questions if not found.get(question.question_id)]
    if missing:
        shown = ", ".join(missing[:_NUM_SHOWN]) + (", ..." if len(missing) > _NUM_SHOWN else "")
        raise UserError(f"{problem} for {len(missing)} of {len(questions)} questions ({shown}); {remedy}")


def _contexts(document: Document) -> dict[str, str]:
    """Image -> captions, then one object with its box per line, as far as the file has them."""
    reader, found = Reader(document), {}
    for entry in document.records("what each image shows, an object a line"):
        image = identity(entry.value.get("image") or entry.value.get("image_id") or entry.value.get("id"))
        text = "\n".join([*_captions(entry, reader), *_boxes(entry, reader)])
        if found.setdefault(image, text) != text:
            reader.fault(entry.place, f"image {image} is described twice, differently")
    reader.done()
    return found


def _captions(entry: Entry, reader: Reader) -> list[str]:
    given = entry.value.get("captions", entry.value.get("caption", []))
    captions = [given] if isinstance(given, str) else given
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        reader.fault(entry.place, "its captions are not texts; expected a text or a list of texts")
        return []
    return captions


def _boxes(entry: Entry, reader: Reader) -> list[str]:
    boxes = entry.value.get("instances", [])
    try:
        return [f"{one['category']}: [{', '.join(f'{edge:g}' for edge in one['bbox'])}]" for one in boxes]
    except (KeyError, TypeError, ValueError):
        reader.fault(entry.place, 'its instances are not boxes; expected [{"category": TEXT, "bbox": [x1, y1, x2, y2]}]')
        return []
