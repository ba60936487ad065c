"""HallusionBench (Guan et al. 2023, arXiv 2310.14566): yes-or-no questions about figures, about edited figures, and without a figure.

The public code (`utils.py` of the release) has GPT-4 compare every answer with a sentence and call it incorrect (0), correct (1) or
unclear (2). Such verdicts are taken where the predictions have them (`gpt4v_output_gpt_check`). Without one, the answer is read as yes
or no by `policies.answers.yes_no`: a text that is neither is unclear. As in the public code, an unclear answer is wrong, except to
a question of the kind VS without its figure, which cannot be known. `published` takes verdicts only, and refuses answers that have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from policies.answers.yes_no import NO, YES, parse_yes_no
from policies.benchmarks.base import ANSWER, BENCHMARKS, YES_OR_NO, Prediction, Question, by_question, percent
from policies.benchmarks.documents import BenchmarkDataError, Document, Entry, Reader, identity, kind, read_records, show
from policies.benchmarks.predictions import AnswerBenchmark, Fields, missing_count, read_predictions

CATEGORIES = ("VD", "VS")
"""Visual dependent: without the figure there is no answer. Visual supplement: there is one, which the figure may change."""
VERDICT = "gpt4v_output_gpt_check"
_TEXTS = ("model_prediction", "answer")
_FIELDS = Fields(values=(*_TEXTS, VERDICT))
_ORIGINAL = "0"
"""The `figure_id` of the figure as it was, or, of the kind VS, of no figure."""
_PLACE = ("category", "subcategory", "set_id", "figure_id", "question_id")
"""Fields that together identify a question."""
_LABELS = {"0": NO, "1": YES}
INCORRECT, CORRECT, UNCLEAR = "0", "1", "2"
_FOLDER = "hallusion_bench/"


@BENCHMARKS.register("hallusion-bench")
class HallusionBench(AnswerBenchmark):
    """`aAcc` (questions), `qAcc` (questions answered right about each of their figures), `fAcc` (figures about which each question is
    answered right), `easy` and `hard` (as `qAcc`, about original and about edited figures alone); the same in `by_category`, and aAcc in
    `by_subcategory`.

    Data: `HallusionBench.json`. Ids are `category_subcategory_set_figure_question`, such as `VD_illusion_0_1_2`. Predictions use these,
    or are the records of the data with `model_prediction` and possibly `gpt4v_output_gpt_check`.
    """

    def read(self, documents: Sequence[Document]) -> list[Question]:
        return read_records(documents, "HallusionBench's records", _question)

    def read_predictions(self, document: Document, questions: Sequence[Question], allow_missing: bool = False) -> list[Prediction]:
        ids = {question.question_id: None for question in questions}
        found = read_predictions(_named(document), ids, _FIELDS, _fault_of, allow_missing=allow_missing)
        unjudged = [one.question_id for one in found if VERDICT not in _fields(one.answer)] if self.published else []
        if unjudged:
            advice = "the public code has GPT-4 judge each; judge them there, or leave out --published to read yes and no"
            raise BenchmarkDataError([
                f"{document.name}: no {VERDICT} for {len(unjudged)} of {len(found)} answers, such as that to {unjudged[0]}; {advice}"
            ])  # fmt: skip
        return found

    def prompt(self, question: Question, setting: str = ANSWER) -> str:
        return f"{question.text} {YES_OR_NO}"

    def parse(self, question: Question, answer: str, setting: str = ANSWER) -> str | None:
        return parse_yes_no(answer)

    def score(self, questions: Sequence[Question], predictions: Sequence[Prediction]) -> dict[str, Any]:
        answers = by_question(predictions)
        verdicts = {q.question_id: self._verdict(q, answers[q.question_id]) for q in questions if q.question_id in answers}
        right = {q.question_id: _is_right(q, verdicts.get(q.question_id)) for q in questions}
        found = _scores(questions, right)
        found |= {"num_questions": len(questions), "num_unclear": sum(one == UNCLEAR for one in verdicts.values())}
        found |= missing_count(list(right), answers)
        for name, field in (("by_category", "category"), ("by_subcategory", "split")):
            groups = _grouped(questions, lambda question, field=field: getattr(question, field))
            found[name] = {one: _scores(of, right) for one, of in groups.items()}
        return found

    def _verdict(self, question: Question, answer: Any) -> str:
        """`INCORRECT`, `CORRECT` or `UNCLEAR`. An empty text is no answer, not an unclear one."""
        fields = _fields(answer)
        if VERDICT in fields:
            return identity(fields[VERDICT])
        text = next(fields[name] for name in _TEXTS if name in fields)
        said = self.parse(question, text)
        if said is None:
            return UNCLEAR if text.strip() else INCORRECT
        return CORRECT if said == question.answers[0] else INCORRECT


def _is_right(question: Question, verdict: str | None) -> bool:
    cannot_be_known = question.category == "VS" and _figure_id(question) == _ORIGINAL
    return verdict == CORRECT or (verdict == UNCLEAR and cannot_be_known)


def _scores(questions: Sequence[Question], right: Mapping[str, bool]) -> dict[str, Any]:
    def whole(of: Iterable[Question], key: Callable[[Question], str]) -> float:
        """Share of groups in which each question is answered right."""
        groups = _grouped(of, key)
        return percent(sum(all(right[one.question_id] for one in group) for group in groups.values()), len(groups))

    original = [question for question in questions if _figure_id(question) == _ORIGINAL]
    edited = [question for question in questions if _figure_id(question) != _ORIGINAL]
    figures = [question for question in questions if question.category != "VS" or _figure_id(question) != _ORIGINAL]
    return {
        "aAcc": percent(sum(right[question.question_id] for question in questions), len(questions)),
        "qAcc": whole(questions, lambda question: question.group),
        "fAcc": whole(figures, _figure),
        "easy": whole(original, lambda question: question.group),
        "hard": whole(edited, lambda question: question.group),
    }


def _grouped(questions: Iterable[Question], key: Callable[[Question], str]) -> dict[str, list[Question]]:
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(key(question), []).append(question)
    return groups


def _figure(question: Question) -> str:
    return question.question_id.rpartition("_")[0]


def _figure_id(question: Question) -> str:
    return _figure(question).rpartition("_")[2]


def _question(entry: Entry, reader: Reader) -> Question | None:
    parts = [reader.id(entry, name) for name in _PLACE]
    text = reader.get(entry, "question", str, "the question's text")
    label = reader.id(entry, "gt_answer")
    category, subcategory, set_id, _, question_id = parts
    one = "_".join(parts)
    if not all(parts) or text is None or not label:
        return None
    reader.once(entry.place, one, "question")
    if category not in CATEGORIES:
        reader.fault(entry.place, f"category is {show(category)}; expected {' or '.join(CATEGORIES)}")
    if label not in _LABELS:
        reader.fault(entry.place, f"gt_answer is {show(label)}; expected 0 (no) or 1 (yes)")
        return None
    return Question(
        one, text, _image(entry), answers=(_LABELS[label],), category=category, split=subcategory,
        group="_".join((category, subcategory, set_id, question_id)),
    )  # fmt: skip


def _image(entry: Entry) -> str:
    """The figure's file in the folder `hallusion_bench`; empty if the question has none."""
    name = entry.value.get("filename")
    has_image = identity(entry.value.get("visual_input", "1")) != "0" and isinstance(name, str)
    return name.removeprefix("./").removeprefix(_FOLDER) if has_image else ""


def _named(document: Document) -> Document:
    """The predictions with the id of a question in place of its five fields."""
    if document.entries is None:
        return document
    return Document(document.name, document.content, tuple(Entry(place, _with_id(value)) for place, value in document.entries))


def _with_id(value: Any) -> Any:
    is_own = isinstance(value, dict) and all(isinstance(value.get(name), str | int) for name in _PLACE)
    return {**value, "question_id": "_".join(str(value[name]) for name in _PLACE)} if is_own else value


def _fields(answer: Any) -> dict[str, Any]:
    return answer if isinstance(answer, dict) else {ANSWER: answer}


def _fault_of(answer: Any) -> str | None:
    fields = _fields(answer)
    verdict = fields.get(VERDICT)
    if VERDICT in fields and (type(verdict) not in (str, int) or str(verdict) not in (INCORRECT, CORRECT, UNCLEAR)):
        return f"{VERDICT} is {show(verdict)}; expected 0 (incorrect), 1 (correct) or 2 (unclear)"
    texts = {name: fields[name] for name in _TEXTS if name in fields}
    if not texts and VERDICT not in fields:
        return f"the answer is {show(answer)}; expected {' or '.join(_FIELDS.values)}"
    wrong = next((text for text in texts.values() if not isinstance(text, str)), None)
    return f"the answer is {show(wrong)} ({kind(wrong)}); expected a text" if wrong is not None else None
