"""POPE (Li et al. 2023, arXiv 2305.10355): yes-or-no questions about objects, half of them about objects that are not there.

Reading an answer: the public code (LLaVA's `eval_pope.py`) looks at the text before the first full stop, without commas, and calls it
no if it contains one of the words `No`, `no`, `not`, anything else yes. So `NO`, `No!`, `There isn't one` and the empty answer are yes
there, and `Yes, there are no chairs` is no. By default an answer is read as `policies.answers.yes_no` does; one that is neither is
unparsable: wrong, no `yes` and no `no`, and counted in `num_unparsable`. `published` reads as the public code.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

from policies.answers.yes_no import NO, YES, parse_yes_no
from policies.benchmarks.base import ANSWER, BENCHMARKS, SHORT_ANSWER, Prediction, Question, by_question, percent
from policies.benchmarks.documents import Document, Entry, Reader, identity, read_records, show
from policies.benchmarks.predictions import AnswerBenchmark, missing_count
from policies.texts import with_article

SPLITS = ("random", "popular", "adversarial")


def parse_yes_no_published(answer: str) -> str:
    """`yes` or `no` as LLaVA's code reads it."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return NO if {"No", "no", "not"} & set(words) else YES


@dataclass(frozen=True, slots=True)
class Confusion:
    """Counts of labels and predictions; `unparsable` are yes-labelled and no-labelled ones whose answer is neither."""

    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int
    unparsable: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, pairs: Sequence[tuple[str, str | None]]) -> Confusion:
        """From `(label, prediction)` pairs."""
        counts = Counter(pairs)
        return cls(counts[YES, YES], counts[NO, YES], counts[NO, NO], counts[YES, NO], (counts[YES, None], counts[NO, None]))

    def scores(self, num_missing: int = 0) -> dict[str, Any]:
        """The field's five figures in percent, and counts. An unparsable answer to a yes question lowers the recall.

        Args:
            num_missing: how many of the unparsable ones are questions without an answer.
        """
        total = self.true_positives + self.false_positives + self.true_negatives + self.false_negatives + sum(self.unparsable)
        said_yes = self.true_positives + self.false_positives
        precision = percent(self.true_positives, said_yes)
        recall = percent(self.true_positives, self.true_positives + self.false_negatives + self.unparsable[0])
        return {
            "accuracy": percent(self.true_positives + self.true_negatives, total),
            "precision": precision,
            "recall": recall,
            "f1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
            "yes_ratio": percent(said_yes, total),
            "num_questions": total,
            "num_unparsable": sum(self.unparsable) - num_missing,
        }


@BENCHMARKS.register("pope")
class Pope(AnswerBenchmark):
    """`accuracy`, `precision`, `recall`, `f1`, `yes_ratio`; `by_split` if the data names splits (`category`).

    Data: POPE's JSON Lines (`question_id`, `image`, `text`, `label`), one split a file.
    """

    def read(self, documents: Sequence[Document]) -> list[Question]:
        return read_records(documents, "POPE's questions, an object a line", _question)

    def prompt(self, question: Question, setting: str = ANSWER) -> str:
        return f"{question.text}\n{SHORT_ANSWER}"

    def parse(self, question: Question, answer: str, setting: str = ANSWER) -> str | None:
        return parse_yes_no_published(answer) if self.published else parse_yes_no(answer)

    def score(self, questions: Sequence[Question], predictions: Sequence[Prediction]) -> dict[str, Any]:
        answers = by_question(predictions)
        found = self._scores(questions, answers)
        splits = list(dict.fromkeys(question.split for question in questions))
        if splits != [""]:
            found["by_split"] = {split: self._scores([q for q in questions if q.split == split], answers) for split in splits}
        return found

    def _scores(self, questions: Sequence[Question], answers: Mapping[str, str]) -> dict[str, Any]:
        said = {question.question_id: answers.get(question.question_id) for question in questions}
        pairs = [(q.answers[0], None if (text := said[q.question_id]) is None else self.parse(q, text)) for q in questions]
        missing = missing_count(list(said), answers)
        return Confusion.of(pairs).scores(missing.get("num_missing", 0)) | missing


def _question(entry: Entry, reader: Reader) -> Question | None:
    question_id = reader.id(entry, "question_id")
    text = reader.get(entry, "text", str, "the question's text")
    label = reader.get(entry, "label", str, "yes or no")
    reader.once(entry.place, question_id, "question")
    if text is None or label is None:
        return None
    if label not in (YES, NO):
        reader.fault(entry.place, f"label is {show(label)}; expected yes or no")
        return None
    image, split = identity(entry.value.get("image")), str(entry.value.get("category") or "")
    return Question(question_id, text, image, answers=(label,), split=split)


def build_questions(
    objects_by_image: Mapping[str, Collection[str]],
    split: str,
    num_per_image: int,
    seed: int,
    counted: Mapping[str, Collection[str]] | None = None,
) -> list[Question]:
    """POPE's questions for images whose objects are known: for each image equally many about present and absent objects.

    Absent objects are drawn as the paper has it (section 5.1): `random`: any of the data's objects; `popular`: the most frequent ones of
    the data; `adversarial`: those that most often occur together with this image's objects. Ties go to the more frequent object, then
    by name.

    Args:
        objects_by_image: categories of the objects of each image; those of all images together are what may be asked about.
        split: `random`, `popular` or `adversarial`.
        num_per_image: questions for each image, an even number; fewer where an image has too few objects present or absent.
        seed: of the draws. The questions of an image do not depend on the order of images.
        counted: objects of the images in which frequencies and what occurs together are counted, such as those that a model was trained
            on; None counts in the images that are asked about.

    Returns:
        yes and no questions in turn, in the images' order; ids are counted from 1.

    Raises:
        ValueError: an unknown split, or `num_per_image` is odd or below 2.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; expected one of {list(SPLITS)}")
    if num_per_image < 2 or num_per_image % 2:
        raise ValueError(f"num_per_image is {num_per_image}; expected an even number of 2 or more")
    counted = objects_by_image if counted is None else counted
    frequency = Counter(one for objects in counted.values() for one in set(objects))
    together = _together(counted) if split == "adversarial" else {}
    known = {one for objects in objects_by_image.values() for one in objects} | set(frequency)
    asked: list[tuple[str, str, str]] = []
    for image, objects in objects_by_image.items():
        draw = random.Random(f"{seed} {image}")  # text seeds do not depend on the process
        present, absent = sorted(set(objects)), sorted(known - set(objects))
        num_pairs = min(num_per_image // 2, len(present), len(absent))
        if split == "random":
            chosen = draw.sample(absent, num_pairs)
        else:
            near: Counter[str] = sum((together.get(one, Counter()) for one in present), Counter()) if split == "adversarial" else Counter()
            chosen = sorted(absent, key=lambda one, near=near: (-near[one], -frequency[one], one))[:num_pairs]
        pairs = zip_longest(draw.sample(present, num_pairs), chosen)
        asked += chain.from_iterable(((image, there, YES), (image, not_there, NO)) for there, not_there in pairs)
    return [
        Question(str(number), f"Is there {with_article(name)} in the image?", image, answers=(label,), split=split)
        for number, (image, name, label) in enumerate(asked, 1)
    ]


def _together(objects_by_image: Mapping[str, Collection[str]]) -> dict[str, Counter[str]]:
    """Object -> how many images it shares with each other object."""
    found: dict[str, Counter[str]] = {}
    for objects in objects_by_image.values():
        there = set(objects)
        for one in there:
            found.setdefault(one, Counter()).update(there - {one})
    return found
