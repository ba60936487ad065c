"""VQA v2, OK-VQA, TextVQA and VizWiz: soft accuracy over ten human answers (Antol et al. 2015, arXiv 1505.00468).

    accuracy = mean over the annotators of min(1, matches among the other annotators / 3)

With three answers or fewer no prediction could reach 1; then, unless `published`, it is the share of matching answers.

By default both sides are normalised in full, and an answer is read as a person would (`read_answer`). The public evaluator
(GT-Vision-Lab/VQA as opendatalab/VIGC carries it) normalises the prediction in full, but the human answers by punctuation only, and
not even so if all ten are equal: "two" given by all ten is then wrong whatever is predicted. Its own annotation files contain answers
that are already normalised, for which both agree; `published` reproduces it, for numbers on raw answers that must equal the public code's.

TextVQA (Singh et al. 2019, arXiv 1904.08920) and VizWiz (Gurari et al. 2018, arXiv 1802.08218) are scored by the same accuracy.

OK-VQA also circulates as soft labels (`okvqa.json`: answer -> score). A prediction gets the score of its label; one that is not
a label itself is looked up in normalised form, unless `published`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from policies.answers.normalise import normalise_answer, normalise_answer_m4c, normalise_punctuation, trimmed
from policies.answers.reasoning import final_answer
from policies.answers.yes_no import NO, YES, fold, parse_yes_no
from policies.benchmarks.base import ANSWER, BENCHMARKS, SHORT_ANSWER, Prediction, Question, by_question, percent
from policies.benchmarks.documents import BenchmarkDataError, Document, Entry, Reader, identity, kind, read_records, show
from policies.benchmarks.predictions import AnswerBenchmark, Fields, fields_in, missing_count, read_predictions

_NUM_AGREEING = 3
"""Annotators who have to agree with a prediction for full accuracy."""


def soft_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The accuracy of one prediction, 0..1; both sides already normalised.

    With `m` matches among `n` answers, `m` annotators see `m - 1` others that match and `n - m` see `m`.
    """
    matches, total = answers.count(prediction), len(answers)
    if not matches:
        return 0.0
    return (matches * min(1.0, (matches - 1) / 3) + (total - matches) * min(1.0, matches / 3)) / total


def vqa_accuracy(prediction: str, answers: Sequence[str], published: bool = False) -> float:
    """Soft accuracy, 0..1, after normalisation.

    Args:
        prediction: as the model wrote it.
        answers: of the annotators; ten in the field's data.
        published: normalise the human answers like the public evaluator, not completely.
    """
    if not published:
        right = [normalise_answer(answer) for answer in answers]
        return _accuracy(read_answer(prediction, right), right)
    given = [trimmed(answer) for answer in answers]
    if len(set(given)) > 1:
        given = [normalise_punctuation(answer) for answer in given]
    return soft_accuracy(normalise_answer(prediction), given)


def _accuracy(said: str | None, right: Sequence[str]) -> float:
    if said is None:
        return 0.0
    return soft_accuracy(said, right) if len(right) > _NUM_AGREEING else right.count(said) / len(right)


def soft_label_score(prediction: str, weights: dict[str, float], published: bool = False) -> float:
    """Score of a prediction's soft label, 0..1; 0 if it is not a label. Of labels with the same normalised form the highest counts."""
    if prediction in weights or published:
        return weights.get(prediction, 0.0)
    labels = {answer: normalise_answer(answer) for answer in weights}
    wanted = read_answer(prediction, list(labels.values()))
    return max((weight for answer, weight in weights.items() if labels[answer] == wanted), default=0.0)


_LEAD = re.compile(
    r"\A\W*(?:(?:so|thus|therefore)\W+)?(?:(?:the |my )?(?:final |short |correct )?answer(?: is| would be)?\s*:?"
    r"|(?:it|this|that)(?: is|'s)|(?:they|these|those)(?: are|'re)|there (?:is|are))\s+|\A\W*答案(?:是|为)?:?",
    re.IGNORECASE,
)
_EMPHASIS = re.compile(r"[*`]+")
_EXPLAINED = re.compile(r"\n|[.!]\s|,?\s(?:because|since|as)\s")


def read_answer(prediction: str, answers: Sequence[str], normalise: Callable[[str], str] = normalise_answer) -> str | None:
    """A prediction in normalised form, for comparison with `answers` that `normalise` has normalised; None if there is no answer.

    The text after its reasoning is used unchanged if it is one of the answers. Otherwise, if most answers are yes or no, it is read by
    `policies.answers.yes_no`. From others, an introduction ("The answer is") and an explanation after the answer are removed.
    """
    text = fold(final_answer(prediction))
    if not text.strip():
        return None
    said = normalise(text)
    if said in answers:
        return said
    if 2 * sum(answer in (YES, NO) for answer in answers) > len(answers):
        return parse_yes_no(text) or said
    short = normalise(_EXPLAINED.split(_LEAD.sub("", f"{_EMPHASIS.sub('', text).strip()} "), maxsplit=1)[0])
    return short if short in answers else said


@BENCHMARKS.register("vqa")
@BENCHMARKS.register("okvqa")
class Vqa(AnswerBenchmark):
    """Soft accuracy: `accuracy`, over all questions, and `by_category` if the data has answer types.

    Data: an annotations file of VQA v2 or OK-VQA (`{"annotations": [{"question_id", "answers": [{"answer"}]}]}`), with the questions
    file beside it where texts are wanted; a list of such annotations, with answers as texts too; or a list with soft labels
    (`{"question_id", "sent", "label": {answer: score}}`).
    """

    def read(self, documents: Sequence[Document]) -> list[Question]:
        texts: dict[str, str] = {}
        questions: list[Question] = []
        for document in documents:
            content = document.content
            if document.entries is not None:
                entries = document.records("a list of questions with question_id and answers, or sent and label")
                questions += (_annotated if "answers" in entries[0].value else _labelled)(document, entries)
            elif isinstance(content, dict) and "annotations" in content:
                questions += _annotated(document, document.listed("annotations"))
            elif isinstance(content, dict) and "questions" in content:
                texts |= _texts(document)
            else:
                raise BenchmarkDataError([f"{document.name} holds neither annotations, questions nor a list with soft labels"])
        if not questions:
            raise BenchmarkDataError([f"{', '.join(d.name for d in documents)}: no answers; give the annotations file too"])
        if texts:
            lost = [question.question_id for question in questions if question.question_id not in texts]
            if lost:
                raise BenchmarkDataError([f"the questions file has no text for {len(lost)} annotated questions, such as {lost[0]}"])
            questions = [replace(question, text=texts[question.question_id]) for question in questions]
        return questions

    def prompt(self, question: Question, setting: str = ANSWER) -> str:
        return f"{question.text}\n{SHORT_ANSWER}"

    def parse(self, question: Question, answer: str, setting: str = ANSWER) -> str | None:
        if self.published:
            return normalise_answer(answer)
        return read_answer(answer, [normalise_answer(one) for one in (*question.answers, *question.weights)])

    def score(self, questions: Sequence[Question], predictions: Sequence[Prediction]) -> dict[str, Any]:
        answers = by_question(predictions)
        scores: dict[str, list[float]] = {}
        for question in questions:
            prediction = answers.get(question.question_id)
            scores.setdefault(question.category, []).append(0.0 if prediction is None else self._score(question, prediction))
        found = {"accuracy": percent(sum(map(sum, scores.values())), len(questions)), "num_questions": len(questions)}
        found["num_unparsable"] = sum(self.parse(q, answers[q.question_id]) is None for q in questions if q.question_id in answers)
        if set(scores) != {""}:
            found["by_category"] = {category: percent(sum(of), len(of)) for category, of in sorted(scores.items())}
        return found | missing_count([question.question_id for question in questions], answers)

    def _score(self, question: Question, prediction: str) -> float:
        if question.weights:
            return soft_label_score(prediction, dict(question.weights), self.published)
        return vqa_accuracy(prediction, question.answers, self.published)


@BENCHMARKS.register("textvqa")
class TextVqa(Vqa):
    """TextVQA: `accuracy`. Both sides are normalised as M4C's evaluator does, which `published` repeats.

    Data: `TextVQA_0.5.1_val.json` (`{"data": [{"question_id", "question", "image_id", "answers": [TEXT, ...]}]}`).
    """

    def read(self, documents: Sequence[Document]) -> list[Question]:
        files = [Document(document.name, None, tuple(document.listed("data"))) for document in documents]
        return read_records(files, "TextVQA's questions", _text_question)

    def parse(self, question: Question, answer: str, setting: str = ANSWER) -> str | None:
        right = [normalise_answer_m4c(one) for one in question.answers]
        return normalise_answer_m4c(answer) if self.published else read_answer(answer, right, normalise_answer_m4c)

    def _score(self, question: Question, prediction: str) -> float:
        return _accuracy(self.parse(question, prediction), [normalise_answer_m4c(one) for one in question.answers])


def _text_question(entry: Entry, reader: Reader) -> Question | None:
    question_id, image = reader.id(entry, "question_id"), reader.id(entry, "image_id")
    return _answered(entry, reader, Question(question_id, "", image, split=str(entry.value.get("set_name") or "")), "question")


UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
"""LLaVA-1.5's instruction for VizWiz (arXiv 2310.03744)."""


@BENCHMARKS.register("vizwiz")
class VizWiz(Vqa):
    """VizWiz: `accuracy`, and `by_category` of its answer types. A question has the name of its image as its id.

    The public code (VizWiz's Python API) normalises the prediction, and compares with the human answers as they stand: "7-Up" matches none.
    `published` repeats it.

    Data: `train.json` or `val.json` (a list of `image`, `question`, `answers` with `answer`, `answer_type`). Predictions: VizWiz's own
    (records with `image` and `answer`), `{image: answer}`, or records with `question_id` and `answer`.
    """

    def read(self, documents: Sequence[Document]) -> list[Question]:
        return read_records(documents, "VizWiz's list of questions (train.json or val.json)", _vizwiz_question)

    def read_predictions(self, document: Document, questions: Sequence[Question], allow_missing: bool = False) -> list[Prediction]:
        fields = fields_in(document, Fields(key="image"))
        return read_predictions(document, {question.question_id: None for question in questions}, fields, allow_missing=allow_missing)

    def prompt(self, question: Question, setting: str = ANSWER) -> str:
        return f"{question.text}\n{UNANSWERABLE}\n{SHORT_ANSWER}"

    def _score(self, question: Question, prediction: str) -> float:
        return soft_accuracy(normalise_answer(prediction), question.answers) if self.published else super()._score(question, prediction)


def _vizwiz_question(entry: Entry, reader: Reader) -> Question | None:
    image = reader.id(entry, "image")
    return _answered(entry, reader, Question(image, "", image, category=str(entry.value.get("answer_type") or "")), "image")


def _answered(entry: Entry, reader: Reader, question: Question, named_by: str) -> Question | None:
    """The question with the text and the annotators' answers of its record."""
    text = reader.get(entry, "question", str, "the question's text")
    answers = _answers(entry, reader)
    reader.once(entry.place, question.question_id, named_by)
    return None if text is None or not answers else replace(question, text=text, answers=answers)


def _answers(entry: Entry, reader: Reader) -> tuple[str, ...]:
    """The annotators' answers of a record; empty with a fault."""
    expected = "a list of texts, or of objects with answer (a test split has none)"
    given = reader.get(entry, "answers", list, expected)
    answers = [one.get("answer") if isinstance(one, dict) else one for one in given or ()]
    texts = tuple(answer for answer in answers if isinstance(answer, str))
    if given is not None and (not texts or len(texts) < len(answers)):
        reader.fault(entry.place, f"answers is {show(given)}; expected {expected}")
        return ()
    return texts


def _annotated(document: Document, entries: Sequence[Entry]) -> list[Question]:
    reader, questions = Reader(document), []
    for entry in entries:
        question_id = reader.id(entry, "question_id")
        answers = _answers(entry, reader)
        if not answers:
            continue
        image, category = identity(entry.value.get("image_id")), str(entry.value.get("answer_type") or "")
        text = entry.value.get("question")
        text = text if isinstance(text, str) else ""  # the official annotations have none; their questions file does
        questions.append(Question(question_id, text, image, answers=answers, category=category))
        reader.once(entry.place, question_id, "question")
    reader.done()
    return questions


def _texts(document: Document) -> dict[str, str]:
    reader, found = Reader(document), {}
    for entry in document.listed("questions"):
        question_id = reader.id(entry, "question_id")
        found[question_id] = reader.get(entry, "question", str, "a text")
        reader.once(entry.place, question_id, "question")
    reader.done()
    return found


def _labelled(document: Document, entries: Sequence[Entry]) -> list[Question]:
    reader, questions = Reader(document), []
    for entry in entries:
        question_id = reader.id(entry, "question_id")
        text = reader.get(entry, "sent", str, "the question's text")
        label = reader.get(entry, "label", dict, "an object of answers and scores from 0 to 1")
        if label is None or text is None:
            continue
        if not all(type(weight) in (int, float) and 0 <= weight <= 1 for weight in label.values()):
            reader.fault(entry.place, f"label is {show(label)} ({kind(label)}); expected scores from 0 to 1")
            continue
        image = str(entry.value.get("img_id") or identity(entry.value.get("image_id")))
        questions.append(Question(question_id, text, image, weights=label, split=str(entry.value.get("split") or "")))
        reader.once(entry.place, question_id, "question")
    reader.done()
    return questions
