"""GQA: accuracy over the balanced questions, its own format of predictions, both ways of comparing."""

from __future__ import annotations

from typing import Any

import pytest

from policies.benchmarks import Document
from tests.policies.benchmarks.make import document, faults, lines, score


def question(answer: str, structural: str, balanced: bool = True, **changes: Any) -> dict[str, Any]:
    types = {"structural": structural, "semantic": "attr", "detailed": "color"}
    return {"question": "Is it?", "answer": answer, "imageId": "n1", "isBalanced": balanced, "types": types, **changes}


QUESTIONS = {"201": question("red", "query"), "202": question("yes", "verify"), "203": question("left", "choose")}


def data(**more: dict[str, Any]) -> Document:
    return document({**QUESTIONS, **more}, "testdev_balanced_questions.json")


def test_open_and_binary_questions_are_counted_apart() -> None:
    found = score("gqa", [data()], document({"201": "red", "202": "no", "203": "left"}))
    assert (found["accuracy"], found["binary"], found["open"]) == (pytest.approx(200 / 3), 50, 100)
    assert found["by_structural_type"] == {"choose": 100, "query": 100, "verify": 0}


def test_the_public_code_compares_as_it_stands() -> None:
    predictions = document({"201": "It is red.", "202": "Yes, it is", "203": "left"})
    assert score("gqa", [data()], predictions)["accuracy"] == 100
    assert score("gqa", [data()], predictions, published=True)["accuracy"] == pytest.approx(100 / 3)


def test_questions_that_are_not_balanced_do_not_count() -> None:
    file = data(**{"9": question("dog", "query", balanced=False)})
    right = {"201": "red", "202": "yes", "203": "left"}
    for predictions in (right, {**right, "9": "cat"}):
        found = score("gqa", [file], document(predictions))
        assert (found["accuracy"], found["num_questions"]) == (100, 3)


def test_gqa_s_own_predictions_are_read() -> None:
    rows = [{"questionId": one, "prediction": text} for one, text in (("201", "red"), ("202", "yes"), ("203", "right"))]
    assert score("gqa", [data()], document(rows))["accuracy"] == pytest.approx(200 / 3)
    assert score("gqa", [data()], lines(*({"question_id": row["questionId"], "answer": row["prediction"]} for row in rows)))["open"] == 100
    assert "no field 'prediction'" in faults("gqa", [data()], document([{"questionId": "201"}]))[0]


def test_files_that_do_not_fit_are_refused() -> None:
    good = document({"201": "red"})
    assert "has no prediction for 2 of 3 questions (202, 203)" in faults("gqa", [data()], good)[0]
    assert faults("gqa", [document([1])], good) == ["data.json holds no questions by id; expected GQA's questions file"]
    unbalanced = document({"1": question("red", "query", balanced=False)})
    assert faults("gqa", [unbalanced], good) == ["data.json: no question is balanced; give testdev_balanced_questions.json"]
    assert "isBalanced is 1" in faults("gqa", [data(**{"204": question("red", "query", isBalanced=1)})], good)[0]
    assert "the structural type None" in faults("gqa", [data(**{"204": question("red", "query", types={})})], good)[0]
