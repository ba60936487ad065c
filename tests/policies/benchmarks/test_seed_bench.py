"""SEED-Bench: letters as they stand and as a person reads them, types and splits, its file."""

from __future__ import annotations

from typing import Any

import pytest

from policies.benchmarks import BENCHMARKS, Document
from tests.policies.benchmarks.make import document, faults, score


def question(number: int, kind: int = 1, data_type: str = "image", **changes: Any) -> dict[str, Any]:
    choices = {"choice_a": "One", "choice_b": "Two", "choice_c": "Three", "choice_d": "Four"}
    return {
        "answer": "B", **choices, "data_id": f"{number}_7", "data_type": data_type, "question": "How many dogs are there?",
        "question_id": str(number), "question_type_id": kind, **changes,
    }  # fmt: skip


def data(*questions: dict[str, Any]) -> Document:
    return document(
        {"question_type": {"Scene Understanding": 1, "Action Recognition": 10}, "questions": list(questions)}, "SEED-Bench.json"
    )


FILE = data(question(1), question(2), question(3, 10, "video"))


def test_accuracy_is_counted_by_type_and_by_split() -> None:
    found = score("seed-bench", [FILE], document({"1": "B", "2": "Three.", "3": "(b) Two"}))
    assert (found["accuracy"], found["num_questions"], found["num_unparsable"]) == (pytest.approx(200 / 3), 3, 0)
    assert found["by_type"] == {"Scene Understanding": 50, "Action Recognition": 100}
    assert found["by_split"] == {"image": 50, "video": 100}
    assert "by_split" not in score("seed-bench", [data(question(1))], document({"1": "B"}))


def test_the_public_code_takes_the_letter_alone() -> None:
    predictions = document({"1": "B", "2": "B.", "3": "Two"})
    assert score("seed-bench", [FILE], predictions)["accuracy"] == 100
    published = score("seed-bench", [FILE], predictions, published=True)
    assert (published["accuracy"], published["num_unparsable"]) == (pytest.approx(100 / 3), 2)


def test_questions_have_choices_and_an_image_and_a_split() -> None:
    benchmark = BENCHMARKS.build("seed-bench")
    [first, *_, video] = benchmark.read([FILE])
    assert (first.image, first.split, first.category, video.split) == ("1_7", "image", "Scene Understanding", "video")
    assert benchmark.prompt(first).splitlines()[:3] == ["How many dogs are there?", "A. One", "B. Two"]
    assert [one.category for one in benchmark.read([document([question(1)])])] == ["1"]


def test_files_that_do_not_fit_are_refused() -> None:
    good = document({"1": "B"})
    assert faults("seed-bench", [FILE], good) == [
        "data.json has no prediction for 2 of 3 questions (2, 3); predict them, choose one of the splits image, video with --split, "
        "or count them as wrong with --allow-missing"
    ]
    assert faults("seed-bench", [data(question(1, answer="E"))], good) == [
        "SEED-Bench.json, questions 0: answer is 'E'; expected one of A, B, C, D"
    ]
    assert "no field 'choice_d'" in faults("seed-bench", [document([{k: v for k, v in question(1).items() if k != "choice_d"}])], good)[0]
    assert faults("seed-bench", [document({"questions": []})], good) == [
        "data.json: question_type is None (null); expected an object of names and ids"
    ]
