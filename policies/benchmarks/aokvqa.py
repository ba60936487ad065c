"""A-OKVQA (Schwenk et al. 2022, arXiv 2206.01718): multiple choice and direct answer.

Direct answer: min(1, equal answers among the annotators' / 3), compared as they stand, without questions marked difficult. Multiple
choice: equal to the right choice. By default a multiple-choice prediction may also be a letter or a sentence that names one choice
(`policies.benchmarks.options`); the public evaluator (allenai/aokvqa) accepts only the choice's text, and so does `published`.
Predictions that name no choice are counted in `num_unparsable`, missing direct answers in `num_unparsable_direct_answer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from policies.answers.reasoning import final_answer
from policies.benchmarks.base import BENCHMARKS, SHORT_ANSWER, Prediction, Question, by_question, percent, with_options
from policies.benchmarks.documents import Document, Entry, Reader, identity, kind, read_records, show
from policies.benchmarks.options import read_option
from policies.benchmarks.predictions import AnswerBenchmark, Fields, missing_count, read_predictions
from policies.metrics import normalise

MULTIPLE_CHOICE = "multiple_choice"
DIRECT_ANSWER = "direct_answer"
SETTINGS = (MULTIPLE_CHOICE, DIRECT_ANSWER)


def direct_answer_score(prediction: str, answers: Sequence[str]) -> float:
    """Score of one direct answer, 0..1."""
    return min(1.0, answers.count(prediction) / 3)


@BENCHMARKS.register("aokvqa")
class Aokvqa(AnswerBenchmark):
    """`multiple_choice` and `direct_answer`, each only if the predictions have it.

    Data: the official list (`question_id`, `question`, `choices`, `correct_choice_idx`, `direct_answers`,
    `difficult_direct_answer`). Predictions: `{question id: {"multiple_choice": TEXT, "direct_answer": TEXT}}`, or records with these.
    """

    settings = SETTINGS

    def read(self, documents: Sequence[Document]) -> list[Question]:
        return read_records(documents, "the list of A-OKVQA's questions", _question)

    def read_predictions(self, document: Document, questions: Sequence[Question], allow_missing: bool = False) -> list[Prediction]:
        fields = Fields(values=SETTINGS)
        ids = {question.question_id: None for question in questions}
        predictions = read_predictions(document, ids, fields, _check, allow_missing=allow_missing)
        reader, used = Reader(document), [name for name in SETTINGS if any(name in one.answer for one in predictions)]
        for one in predictions:
            lacking = [name for name in used if name not in one.answer]
            if lacking and not allow_missing:
                reader.fault(f"question_id {one.question_id}", f"no {' and '.join(lacking)}, which other predictions have; add it")
        reader.done()
        return predictions

    def prompt(self, question: Question, setting: str = MULTIPLE_CHOICE) -> str:
        return f"{question.text}\n{SHORT_ANSWER}" if setting == DIRECT_ANSWER else with_options(question)

    def parse(self, question: Question, answer: str, setting: str = MULTIPLE_CHOICE) -> str | None:
        """The named choice's text, or a direct answer in lower case without a final full stop."""
        answer = self._written(answer)
        if setting == DIRECT_ANSWER:
            return normalise(answer) if answer or self.published else None
        if answer in question.choices:
            return answer
        index = None if self.published else read_option(answer, question.choices)
        return None if index is None else question.choices[index]

    def _written(self, answer: str) -> str:
        return answer if self.published else final_answer(answer)

    def score(self, questions: Sequence[Question], predictions: Sequence[Prediction]) -> dict[str, Any]:
        answers = by_question(predictions)
        found: dict[str, Any] = {}
        if any(MULTIPLE_CHOICE in answer for answer in answers.values()):
            chosen = {
                q.question_id: self.parse(q, answers[q.question_id][MULTIPLE_CHOICE])
                for q in questions
                if MULTIPLE_CHOICE in answers.get(q.question_id, ())
            }
            hits = sum(chosen.get(question.question_id) == question.right_choice for question in questions)
            found[MULTIPLE_CHOICE] = percent(hits, len(questions))
            found["num_unparsable"] = sum(choice is None for choice in chosen.values())
        if any(DIRECT_ANSWER in answer for answer in answers.values()):
            asked = [question for question in questions if not question.difficult]
            given = {one: answer[DIRECT_ANSWER] for one, answer in answers.items() if DIRECT_ANSWER in answer}
            total = sum(direct_answer_score(self._written(given[q.question_id]), q.answers) for q in asked if q.question_id in given)
            found |= {DIRECT_ANSWER: percent(total, len(asked)), "num_direct_answer": len(asked)}
            found["num_unparsable_direct_answer"] = sum(not self._written(text).strip() for text in given.values())
        found["num_questions"] = len(questions)
        return found | missing_count([question.question_id for question in questions], answers)


def _question(entry: Entry, reader: Reader) -> Question | None:
    question_id = reader.id(entry, "question_id")
    text = reader.get(entry, "question", str, "a text")
    choices = reader.texts(entry, "choices", "a list of texts")
    answers = reader.texts(entry, "direct_answers", "a list of texts (the test split has none)")
    right = reader.get(entry, "correct_choice_idx", int, "the index of a choice (the test split has none)")
    difficult = reader.get(entry, "difficult_direct_answer", bool, "true or false")
    reader.once(entry.place, question_id, "question")
    if right is None or text is None or difficult is None:
        return None
    if not 0 <= right < len(choices):
        reader.fault(entry.place, f"correct_choice_idx is {right}; there are {len(choices)} choices")
        return None
    image, split = identity(entry.value.get("image_id")), str(entry.value.get("split") or "")
    return Question(question_id, text, image, choices, answers, choices[right], split=split, difficult=difficult)


def _check(value: Any) -> str | None:
    expected = f"expected an object with {MULTIPLE_CHOICE}, {DIRECT_ANSWER} or both"
    if not isinstance(value, dict) or not set(SETTINGS) & set(value):
        return f"the answer is {show(value)} ({kind(value)}); {expected}"
    if strange := sorted(set(value) - set(SETTINGS)):
        return f"the answer has {', '.join(map(show, strange))}; {expected}"
    wrong = [name for name, text in value.items() if not isinstance(text, str)]
    return f"{wrong[0]} is {show(value[wrong[0]])} ({kind(value[wrong[0]])}); expected a text" if wrong else None
