"""LLaVA-Bench (Liu et al. 2023, arXiv 2304.08485): a judge scores two answers; the relative score compares the means of the scores.

    relative score = mean score of answer 2 (the model) / mean score of answer 1 (the reference) * 100

The public code (LLaVA's `eval_gpt_review_visual.py`, `summarize_gpt_review.py`) reads the scores only from the first line and only in
the form `8 9` or `8,9`; anything else is recorded as -1 for both and averaged in, and `inf` or 100 is a score. By default any usual
way of writing two scores from 0 to 10 is read, and a review without them is left out and counted in `num_unparsable`. Scores recorded in
a file take precedence over its review's text. `published` does as the public code, and adds under `printed` what that prints: means rounded
to three places, then the relative score and ten times each mean rounded to one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from policies.answers.reasoning import final_text
from policies.benchmarks.base import ANSWER, BENCHMARKS, Prediction, Question
from policies.benchmarks.documents import BenchmarkDataError, Document, Entry, Reader, identity, kind, show
from policies.benchmarks.predictions import AnswerBenchmark, Fields, read_predictions

MAX_SCORE = 10.0
UNREADABLE = (-1.0, -1.0)
"""Scores that the public code records for an unreadable review."""

_TEXT_FIELDS = ("review", "content", "text")
_SCORE_FIELDS = ("score", "tuple")
_RECORD_FIELDS = (*_TEXT_FIELDS, *_SCORE_FIELDS, "category")

_NUMBER = r"(-?\d{1,4}(?:\.\d+)?)(?:\s*/\s*10(?![\d.]))?"
_GAP = r"(?:\s*[,;:&|]\s*|\s+and\s+|\s+)"
_PAIR_LINE = re.compile(rf"[^\w-]*(?:(?:final |overall )?scores?\W+)?{_NUMBER}{_GAP}{_NUMBER}\W*", re.IGNORECASE)
_CLOSING_PAIR = re.compile(rf"\bscores?\s+(?:are|is|would be|:)\s*\(?{_NUMBER}{_GAP}{_NUMBER}\)?", re.IGNORECASE)
_SAYS = r"\W{0,4}\s*(?:(?:score|rating)s?\W{0,3}\s*)?(?:(?:is|gets|receives|:|=)\s*)?"
_NAMED = re.compile(rf"\bassistant\s+([12]){_SAYS}{_NUMBER}(?![\d.]*\w)", re.IGNORECASE)
_MAX_LINE = 200
"""Longest line, in characters, that is read as scores; a longer one is prose."""


def parse_scores(review: str) -> tuple[float, float] | None:
    """The two scores of a review, or None.

    In order: the first line with anything in it, as two numbers; `Assistant 1: 8` and `Assistant 2: 9`; `the scores are (1, 5)`. Each is
    from 0 to 10. A judge's reasoning is not part of its review.
    """
    pair = _first_line(review) or _first_line(final_text(review))
    if pair:
        return _valid(*pair)
    review = final_text(review)
    named: dict[str, set[str]] = {"1": set(), "2": set()}
    for which, score in _NAMED.findall(review):
        named[which].add(score)
    if len(named["1"]) == len(named["2"]) == 1:
        return _valid(named["1"].pop(), named["2"].pop())
    closing = set(_CLOSING_PAIR.findall(review))
    return _valid(*closing.pop()) if len(closing) == 1 else None


def _first_line(review: str) -> tuple[str, str] | None:
    lines = review.strip().splitlines()
    first = _PAIR_LINE.fullmatch(lines[0]) if lines and len(lines[0]) <= _MAX_LINE else None
    return (first[1], first[2]) if first else None


def parse_scores_published(review: str) -> tuple[float, float]:
    """The two scores as LLaVA's code reads them, which may be any number; -1 and -1 if it cannot."""
    parts = review.split("\n")[0].replace(",", " ").split(" ")
    if len(parts) != 2:
        return UNREADABLE
    try:
        return float(parts[0]), float(parts[1])
    except ValueError:
        return UNREADABLE


def relative_score(scores: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Relative score in percent and both means; zeros if there are no scores, or if answer 1 has none."""
    first, second = (sum(pair[side] for pair in scores) / len(scores) if scores else 0.0 for side in (0, 1))
    return {"relative_score": 100 * second / first if first else 0.0, "mean_score_1": first, "mean_score_2": second}


def printed_summary(scores: Sequence[tuple[float, float]]) -> dict[str, float]:
    """The three figures that the public code prints, rounded as it does."""
    means = [round(sum(pair[side] for pair in scores) / len(scores), 3) for side in (0, 1)]
    relative = round(means[1] / means[0] * 100, 1) if means[0] else 0.0
    return {"relative_score": relative, "score1_x10": round(means[0] * 10, 1), "score2_x10": round(means[1] * 10, 1)}


def _valid(first: str, second: str) -> tuple[float, float] | None:
    scores = float(first), float(second)
    return scores if all(0 <= score <= MAX_SCORE for score in scores) else None


@BENCHMARKS.register("llava-bench")
class LlavaBench(AnswerBenchmark):
    """`relative_score` over all, `by_category`, and `by_source` where the reviews name their file (`source_file`).

    Predictions: the judge's reviews, a record each: `question_id`, the text (`review`, `content` or `text`), the recorded scores (`score`
    or `tuple`, two numbers), or both, and `category`. Data: optional, LLaVA's questions (`question_id`, `text` or `question`, `category`
    or `type`): reviews are then checked against them and take their categories from them.
    """

    def read(self, documents: Sequence[Document]) -> list[Question]:
        questions = []
        for document in documents:
            reader = Reader(document)
            for number, entry in enumerate(document.records("LLaVA-Bench's questions, an object a line"), 1):
                # Questions that are in one of LLaVA's two published lists only have no id.
                has_id = entry.value.get("question_id", "") is not None
                question_id = reader.id(entry, "question_id") if has_id else f"no-id-{number}"
                text = reader.get(entry, "question" if "question" in entry.value else "text", str, "the question's text")
                reader.once(entry.place, question_id, "question")
                if not reader.findings:
                    questions.append(_question(entry, question_id, text))
            reader.done()
        return questions

    def read_predictions(self, document: Document, questions: Sequence[Question], allow_missing: bool = False) -> list[Prediction]:
        fields = Fields(values=_RECORD_FIELDS, groups=("source_file",))
        ids = {question.question_id: None for question in questions}
        if not ids:  # there are only reviews
            ids = {str(one.value["question_id"]): None for one in document.entries or () if _has_id(one)}
        if document.entries is None and not (isinstance(document.content, dict) and "question_id" in document.content):
            raise BenchmarkDataError([f"{document.name} holds {kind(document.content)}; expected the judge's reviews, an object a line"])
        return read_predictions(document, ids, fields, _check_review, allow_missing=allow_missing)

    def parse(self, question: Question, answer: str, setting: str = ANSWER) -> str | None:
        return answer

    def score(self, questions: Sequence[Question], predictions: Sequence[Prediction]) -> dict[str, Any]:
        categories = {question.question_id: question.category for question in questions}
        pairs = [(one, self._scores(one.answer)) for one in predictions]
        read = [(one, scores) for one, scores in pairs if scores is not None]
        found: dict[str, Any] = relative_score([scores for _, scores in read])
        by_category: dict[str, list[tuple[float, float]]] = {}
        by_source: dict[str, list[tuple[float, float]]] = {}
        for one, scores in read:
            category = str(one.answer.get("category") or categories.get(one.question_id) or "")
            by_category.setdefault(category, []).append(scores)
            by_source.setdefault(one.group, []).append(scores)
        if by_category and set(by_category) != {""}:
            found["by_category"] = {name: relative_score(of) for name, of in sorted(by_category.items())}
        if by_source and set(by_source) != {""}:
            found["by_source"] = {name: relative_score(of) for name, of in sorted(by_source.items())}
        if self.published and read:
            everything = {"all": [scores for _, scores in read]} | {name: of for name, of in by_category.items() if name}
            found["printed"] = {name: printed_summary(of) for name, of in everything.items()}
        unparsable = len(pairs) - len(read)
        if self.published:
            unparsable = sum(scores == UNREADABLE for _, scores in read)
        found |= {"num_reviews": len(predictions), "num_unparsable": unparsable}
        reviewed = {one.question_id for one in predictions}
        missing = sum(one not in reviewed for one in categories)
        return found | ({"num_missing": missing} if missing else {})

    def _scores(self, record: dict[str, Any]) -> tuple[float, float] | None:
        recorded = next((record[name] for name in _SCORE_FIELDS if name in record), None)
        text = next((record[name] for name in _TEXT_FIELDS if name in record), None)
        if self.published:
            return (float(recorded[0]), float(recorded[1])) if recorded else parse_scores_published(text or "")
        if recorded and all(0 <= score <= MAX_SCORE for score in recorded):
            return float(recorded[0]), float(recorded[1])
        return parse_scores(text) if text is not None else None


def _question(entry: Entry, question_id: str, text: str) -> Question:
    captions = entry.value.get("captions")
    context = "\n".join(map(str, captions)) if isinstance(captions, list) else ""
    reference = entry.value.get("gpt4_answer")
    answers = (reference,) if isinstance(reference, str) else ()
    category = str(entry.value.get("category") or entry.value.get("type") or "")
    return Question(question_id, text, identity(entry.value.get("image")), answers=answers, category=category, context=context)


def _has_id(entry: Entry) -> bool:
    value = entry.value
    return isinstance(value, dict) and isinstance(value.get("question_id"), str | int) and not isinstance(value["question_id"], bool)


def _check_review(record: dict[str, Any]) -> str | None:
    if not any(name in record for name in (*_TEXT_FIELDS, *_SCORE_FIELDS)):
        return f"neither a review ({', '.join(_TEXT_FIELDS)}) nor its scores ({', '.join(_SCORE_FIELDS)})"
    for name in (*_TEXT_FIELDS, "category"):
        if name in record and not isinstance(record[name], str):
            return f"{name} is {show(record[name])} ({kind(record[name])}); expected a text"
    for name in _SCORE_FIELDS:
        if name in record and not _is_pair(record[name]):
            return f"{name} is {show(record[name])}; expected two numbers"
    return None


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(one) in (int, float) and math.isfinite(one) for one in value)
