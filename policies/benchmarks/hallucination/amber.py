"""AMBER (Wang et al. 2023, arXiv 2311.07397), discriminative part: yes-or-no questions about existence, attributes and relations.

A "no" is the positive class: precision is the share of "no" answers that are right, recall the share of "no" questions that are answered
with "no", as in the public code (`inference.py` of the release). `published` repeats that code: only `Yes` and `No`, spelled like this,
are answers, shares are rounded to one place over counts that are 0.001 too large, and F1 is computed from the rounded ones with
a constant in its denominator.

The generative part (CHAIR, Cover, Hal, Cog) is not scored: it compares nouns by the word vectors of a spaCy model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from policies.answers.yes_no import NO, YES, parse_yes_no
from policies.benchmarks.base import ANSWER, BENCHMARKS, YES_OR_NO, Prediction, Question, by_question
from policies.benchmarks.documents import BenchmarkDataError, Document, Entry, Reader, identity, show
from policies.benchmarks.pope import Confusion
from policies.benchmarks.predictions import AnswerBenchmark, Fields, fields_in, missing_count, read_predictions

GENERATIVE = "generative"
NUM_GENERATIVE = 1004
"""Ids up to this one are descriptions in AMBER's files."""
EXISTENCE, RELATION = "existence", "relation"
ATTRIBUTES = ("state", "number", "action")
DIMENSIONS = {
    "discriminative-hallucination": EXISTENCE,
    "discriminative-relation": RELATION,
    "relation": RELATION,  # the type of the questions with the answer no
    **{f"discriminative-attribute-{name}": name for name in ATTRIBUTES},
}
"""Type of an annotation to the dimension of its question."""
_OWN = Fields("id", ("response",))
_OPPOSITE = {YES: NO, NO: YES, None: None}
_EXTRA_COUNT, _F1_EXTRA, _F1_EXTRA_EXISTENCE = 0.001, 0.0001, 0.001
"""What the public code adds to counts and to the denominators of F1."""

Pair = tuple[str, str | None]
"""Right answer and given answer; None for one that is neither yes nor no."""


@BENCHMARKS.register("amber")
class Amber(AnswerBenchmark):
    """`accuracy`, `precision`, `recall`, `f1`, `no_ratio`, and the same in `by_dimension` (existence, attribute with its three kinds,
    relation), as far as the data has them.

    Data: a file of queries (`query_discriminative.json` or one of its parts: `id`, `image`, `query`) and `annotations.json` (`id`, `type`,
    `truth`). Questions are those of the queries; descriptions among them (`query_all.json`) are left out, as in predictions.
    """

    def read(self, documents: Sequence[Document]) -> list[Question]:
        queries, annotations = _parts(documents, "query"), _parts(documents, "truth")
        if not queries or not annotations:
            names = ", ".join(document.name for document in documents)
            lacking = "queries (query_discriminative.json)" if not queries else "annotations (annotations.json)"
            raise BenchmarkDataError([f"{names}: no {lacking}; AMBER needs both, each with --data"])
        questions = [question for one in queries.values() for question in _questions(one, annotations)]
        if not questions:
            raise BenchmarkDataError([f"{documents[0].name}: only descriptions; expected yes-or-no questions (query_discriminative.json)"])
        return questions

    def read_predictions(self, document: Document, questions: Sequence[Question], allow_missing: bool = False) -> list[Prediction]:
        ids = {question.question_id: None for question in questions}
        fields = fields_in(document, _OWN)
        return read_predictions(_without_descriptions(document, fields.key, ids), ids, fields, allow_missing=allow_missing)

    def prompt(self, question: Question, setting: str = ANSWER) -> str:
        return f"{question.text} {YES_OR_NO}"

    def parse(self, question: Question, answer: str, setting: str = ANSWER) -> str | None:
        if self.published:
            return {"Yes": YES, "No": NO}.get(answer)
        return parse_yes_no(answer)

    def score(self, questions: Sequence[Question], predictions: Sequence[Prediction]) -> dict[str, Any]:
        answers = by_question(predictions)
        missing = missing_count([question.question_id for question in questions], answers)
        pairs: dict[str, list[Pair]] = {}
        for question in questions:
            text = answers.get(question.question_id)
            pair = question.answers[0], None if text is None else self.parse(question, text)
            pairs.setdefault(question.category, []).append(pair)
        everything = [pair for of in pairs.values() for pair in of]
        found = self._scores(everything, "", missing.get("num_missing", 0)) | missing
        attributes = [pair for name in ATTRIBUTES for pair in pairs.get(name, [])]
        shown = {EXISTENCE: pairs.get(EXISTENCE), "attribute": attributes, **{name: pairs.get(name) for name in (*ATTRIBUTES, RELATION)}}
        return found | {"by_dimension": {name: self._scores(of, name) for name, of in shown.items() if of}}

    def _scores(self, pairs: Sequence[Pair], dimension: str, num_missing: int = 0) -> dict[str, Any]:
        scores = Confusion.of([(_OPPOSITE[label], _OPPOSITE[said]) for label, said in pairs]).scores(num_missing)
        scores["no_ratio"] = scores.pop("yes_ratio")
        return scores | (published_scores(pairs, dimension) if self.published else {})


def published_scores(pairs: Sequence[Pair], dimension: str) -> dict[str, float]:
    """The four figures as the public code prints them."""

    def share(hits: int, total: int) -> float:
        return round(hits / (total + _EXTRA_COUNT) * 100, 1)

    num_right_no = sum(label == said == NO for label, said in pairs)
    precision = share(num_right_no, sum(said == NO for _, said in pairs))
    recall = share(num_right_no, sum(label == NO for label, _ in pairs))
    extra = _F1_EXTRA_EXISTENCE if dimension == EXISTENCE else _F1_EXTRA
    f1 = round(2 * (precision / 100) * (recall / 100) / (precision / 100 + recall / 100 + extra) * 100, 1)
    accuracy = share(sum(label == said for label, said in pairs), len(pairs))
    return {"accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1}


def _parts(documents: Sequence[Document], field: str) -> dict[str, tuple[Document, Entry]]:
    """Id -> the record that has the field, with its file."""
    found: dict[str, tuple[Document, Entry]] = {}
    for document in documents:
        reader = Reader(document)
        for entry in document.records("AMBER's queries, or its annotations"):
            if "query" not in entry.value and "truth" not in entry.value:
                reader.fault(entry.place, "neither a query nor the truth about one; expected AMBER's query_*.json and annotations.json")
            if field in entry.value:
                one = reader.id(entry, "id")
                reader.once(entry.place, one, "id")
                found[one] = (document, entry)
        reader.done()
    return found


def _questions(query: tuple[Document, Entry], annotations: dict[str, tuple[Document, Entry]]) -> list[Question]:
    """The question of a query; none if it asks for a description."""
    document, entry = query
    one = identity(entry.value["id"])
    reader = Reader(document)
    if one not in annotations:
        raise BenchmarkDataError(
            [f"{document.name}, {entry.place}: id {one} has no annotation; is it the annotations.json of this release?"]
        )
    annotated = annotations[one]
    kind = _annotated(annotated, "type", (*DIMENSIONS, GENERATIVE))
    if kind == GENERATIVE:
        return []
    truth = _annotated(annotated, "truth", (YES, NO))
    text = reader.get(entry, "query", str, "the question's text")
    reader.done()
    return [Question(one, text, identity(entry.value.get("image")), answers=(truth,), category=DIMENSIONS[kind])]


def _annotated(annotation: tuple[Document, Entry], field: str, expected: Sequence[str]) -> str:
    document, entry = annotation
    reader = Reader(document)
    value = reader.get(entry, field, str, f"one of {', '.join(expected)}")
    if value is not None and value not in expected:
        reader.fault(entry.place, f"{field} is {show(value)}; expected one of {', '.join(expected)}")
    reader.done()
    return str(value)


def _without_descriptions(document: Document, key: str, ids: dict[str, None]) -> Document:
    """The predictions without those of the generative part, which share a file with the others."""
    if document.entries is None:
        return document
    kept = tuple(entry for entry in document.entries if not (isinstance(entry.value, dict) and _is_description(entry.value.get(key), ids)))
    return Document(document.name, document.content, kept)


def _is_description(value: Any, ids: dict[str, None]) -> bool:
    return type(value) is int and 1 <= value <= NUM_GENERATIVE and str(value) not in ids
