"""MMBench's CircularEval (Liu et al. 2023, arXiv 2307.06281): a question counts as right only when every rotation of its choices is.

Rotation k of N shows choice (i + k) mod N at letter i. Its id is the question's index plus k million, as in the published tables; a
table that already contains the rotations is used unchanged. An answer is matched by rules first (`policies.benchmarks.options`); the rest
may go to a judge, and what remains is wrong and counted in `num_unparsable`.

The public rules (open-compass/VLMEvalKit `matching_util.py`) split the answer at some punctuation and take the only letter in it, then the
only choice whose text is anywhere in it, within words too: "cat" is found in "cattle", and "dark red" decides nothing between "red" and
"dark red". `published` uses them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from policies.answers.reasoning import final_answer
from policies.benchmarks.base import ANSWER, BENCHMARKS, OPTION_LETTER, Judge, Prediction, Question, by_question, percent, with_options
from policies.benchmarks.documents import Document, Entry, Reader, kind, read_records, show
from policies.benchmarks.options import read_option
from policies.benchmarks.predictions import AnswerBenchmark, missing_count, read_predictions

LETTERS = "ABCDEFGH"
ROTATION = 1_000_000
"""Added to an index for each step of rotation."""
MAX_INDEX_CHARACTERS = 64
"""An image cell up to this length names the row that contains the image."""
_PUBLISHED_MARKS = re.compile(r"[.()\[\],:;!*#{}]")
_PUBLISHED_MAX_WORDS_WITH_A = 3


def rotations(question: Question) -> list[Question]:
    """The question and its N - 1 rotations."""
    choices, right = question.choices, LETTERS.index(question.answers[0])
    count, index = len(choices), int(question.question_id)
    return [
        replace(
            question,
            question_id=str(index + step * ROTATION),
            choices=choices[step:] + choices[:step],
            answers=(LETTERS[(right - step) % count],),
        )
        for step in range(count)
    ]


def match_published(answer: str, choices: Sequence[str]) -> str | None:
    """The letter by the public rules, or None."""
    words = _PUBLISHED_MARKS.sub(" ", answer).split()
    letters = [letter for letter in LETTERS[: len(choices)] if letter in words]
    if len(letters) == 1 and not ("A" in words and len(words) > _PUBLISHED_MAX_WORDS_WITH_A):
        return letters[0]
    text = answer.lower()
    if len(text) > 2 * sum(map(len, choices)):
        return None
    there = [letter for letter, choice in zip(LETTERS, choices, strict=False) if choice.lower() in text]
    return there[0] if len(there) == 1 else None


@BENCHMARKS.register("mmbench")
class MmBench(AnswerBenchmark):
    """`accuracy` by CircularEval, `vanilla_accuracy` of the unrotated questions, `by_category`.

    Data: MMBench's table (TSV with `index`, `question`, `hint`, `A` to `H`, `answer`, `category`, `image`). Predictions: an answer for each
    rotation's index, or for a question's index the list of the answers to its rotations, in order.
    """

    def __init__(self, published: bool = False, judge: Judge | None = None) -> None:
        """Args:
        published: use the public rules.
        judge: asked about answers that no rule matches.
        """
        super().__init__(published)
        self._judge = judge

    def read(self, documents: Sequence[Document]) -> list[Question]:
        groups: dict[str, list[Question]] = {}
        for question in read_records(documents, "MMBench's table", _question):
            groups.setdefault(question.group, []).append(question)
        whole = [group if len(group) > 1 else rotations(group[0]) for group in groups.values()]
        images = {question.question_id: question.image for group in whole for question in group}
        return [_with_image(question, images) for group in whole for question in group]

    def read_predictions(self, document: Document, questions: Sequence[Question], allow_missing: bool = False) -> list[Prediction]:
        ids = {question.question_id: None for question in questions}
        spread, reader = _spread(document, questions)
        reader.done()
        return read_predictions(spread, ids, allow_missing=allow_missing, hint="for every rotation (index + k * 1000000), ")

    def prompt(self, question: Question, setting: str = ANSWER) -> str:
        return with_options(question, OPTION_LETTER)

    def parse(self, question: Question, answer: str, setting: str = ANSWER) -> str | None:
        """The letter of a choice."""
        if self.published:
            letter = match_published(answer, question.choices)
        else:
            index = read_option(answer, question.choices)
            letter = None if index is None else LETTERS[index]
        if letter is None and self._judge is not None:
            chosen = self._judge(question.text, question.choices, answer if self.published else final_answer(answer))
            letter = LETTERS[question.choices.index(chosen)] if chosen in question.choices else None
        return letter

    def score(self, questions: Sequence[Question], predictions: Sequence[Prediction]) -> dict[str, Any]:
        answers = by_question(predictions)
        letters = {q.question_id: self.parse(q, answers[q.question_id]) for q in questions if q.question_id in answers}
        hits: dict[str, bool] = {}
        categories: dict[str, str] = {}
        plain: dict[str, bool] = {}
        for question in questions:
            right = letters.get(question.question_id) == question.answers[0]
            hits[question.group] = hits.get(question.group, True) and right
            plain.setdefault(question.group, right)
            categories[question.group] = question.category
        found: dict[str, Any] = {
            "accuracy": percent(sum(hits.values()), len(hits)),
            "vanilla_accuracy": percent(sum(plain.values()), len(plain)),
            "num_questions": len(hits),
            "num_rotations": len(questions),
            "num_unparsable": sum(letter is None for letter in letters.values()),
        }
        if names := sorted(set(categories.values()) - {""}):
            members = {name: [hit for group, hit in hits.items() if categories[group] == name] for name in names}
            found["by_category"] = {name: percent(sum(of), len(of)) for name, of in members.items()}
        return found | missing_count([question.question_id for question in questions], answers)


def _question(entry: Entry, reader: Reader) -> Question | None:
    index = str(entry.value.get("index", ""))
    reader.once(entry.place, index, "index")
    if not (index.isascii() and index.isdigit()):
        reader.fault(entry.place, f"index is {index!r}; expected a whole number (columns: index, question, A, B, ..., answer)")
        return None
    text = reader.get(entry, "question", str, "the question's text")
    cells = [str(entry.value.get(letter) or "") for letter in LETTERS]
    choices = tuple(cell for cell in cells if cell and cell != "nan")
    answer = reader.get(entry, "answer", str, "the right letter (the test split has none)")
    if len(choices) < 2 or tuple(cells[: len(choices)]) != choices:
        reader.fault(entry.place, f"the choices are {show(cells)}; expected two or more, from A on without a gap")
    elif answer is not None and (len(answer) != 1 or answer not in LETTERS[: len(choices)]):
        reader.fault(entry.place, f"answer is {show(answer)}; expected one of {', '.join(LETTERS[: len(choices)])}")
    elif text is not None and answer is not None:
        hint, category = str(entry.value.get("hint") or ""), str(entry.value.get("category") or "")
        image, split = str(entry.value.get("image") or ""), str(entry.value.get("split") or "")
        group = str(int(index) % ROTATION)
        hint = "" if hint == "nan" else hint
        return Question(str(int(index)), text, image, choices, (answer,), category=category, split=split, context=hint, group=group)
    return None


def _with_image(question: Question, images: dict[str, str]) -> Question:
    """The question with the image itself if its cell names the row that contains it."""
    named = question.image if 0 < len(question.image) <= MAX_INDEX_CHARACTERS else ""
    return replace(question, image=images.get(named, question.image)) if named else question


def _spread(document: Document, questions: Sequence[Question]) -> tuple[Document, Reader]:
    """The predictions with each list of answers split into one answer for each rotation."""
    reader = Reader(document)
    groups: dict[str, list[str]] = {}
    for question in questions:
        groups.setdefault(question.group, []).append(question.question_id)
    if document.entries is not None:
        entries: list[Entry] = []
        for entry in document.entries:
            value = entry.value
            if isinstance(value, dict) and isinstance(value.get(ANSWER), list):
                pairs = _rotated(str(value.get("question_id", "")), value[ANSWER], groups, reader, entry.place)
                entries += [Entry(entry.place, {**value, "question_id": one, ANSWER: answer}) for one, answer in pairs]
            else:
                entries.append(entry)
        return Document(document.name, document.content, tuple(entries)), reader
    content: Any = document.content
    if isinstance(content, dict):
        spread: dict[str, Any] = {}
        for key, value in content.items():
            pairs = _rotated(key, value, groups, reader, f"question_id {key}") if isinstance(value, list) else [(key, value)]
            for one, answer in pairs:
                if one in spread:
                    reader.fault(f"question_id {key}", f"rotation {one} is answered twice; expected it once")
                spread[one] = answer
        content = spread
    return Document(document.name, content, None), reader


def _rotated(key: str, answers: list[Any], groups: dict[str, list[str]], reader: Reader, place: str) -> list[tuple[str, Any]]:
    ids = groups.get(key)
    if ids is None:
        reader.fault(place, f"question_id {show(key)} is not in the data; is this its file?")
        return []
    if len(answers) != len(ids):
        reader.fault(place, f"{kind(answers)} of {len(answers)} answers; expected one for each of its {len(ids)} rotations")
        return []
    return list(zip(ids, answers, strict=True))
