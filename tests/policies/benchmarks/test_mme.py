"""MME: accuracy and accuracy+ over pairs of questions, both ways of reading an answer, the files of its eval_tool."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.benchmarks import BENCHMARKS, Document, parse_document
from policies.benchmarks.mme import TASKS, parse_yes_no_mme
from tests.policies.benchmarks.make import document, faults, lines, score

COUNT = "1.jpg\tAre there two dogs? Please answer yes or no.\tYes\n1.jpg\tAre there three dogs? Please answer yes or no.\tNo\n"
COUNT += "2.jpg\tIs there one cat? Please answer yes or no.\tYes\n2.jpg\tAre there two cats? Please answer yes or no.\tNo\n"
CODE = "0001.png\tIs it Python? Please answer yes or no.\tYes\n0001.png\tIs it C? Please answer yes or no.\tNo\n"
IDS = ("count/1.jpg#1", "count/1.jpg#2", "count/2.jpg#1", "count/2.jpg#2")


def table(text: str, name: str = "count.txt") -> Document:
    return parse_document(name, text.encode())


def said(*answers: str) -> Document:
    return document(dict(zip(IDS, answers, strict=True)))


def test_a_task_is_scored_by_question_and_by_image() -> None:
    """By hand: 3 of 4 questions, 1 of 2 images: 75 + 50 of at most 200."""
    found = score("mme", [table(COUNT)], said("Yes", "No", "Yes.", "Yes, two"))
    assert found["by_task"] == {"count": {"accuracy": 75, "accuracy_plus": 50, "score": 125}}
    assert (found["perception"], found["num_questions"], found["num_unparsable"]) == (125, 4, 0)
    assert "cognition" not in found


def test_perception_and_cognition_are_sums_over_their_tasks() -> None:
    answers = {**dict.fromkeys(IDS[::2], "yes"), **dict.fromkeys(IDS[1::2], "no"), "code_reasoning/0001.png#1": "yes"}
    scene = table("a.jpg\tIs it a beach?\tYes\na.jpg\tIs it a park?\tNo\n", "scene.txt")
    data = [table(COUNT), table(CODE, "code_reasoning.txt"), scene]
    found = score("mme", data, document({**answers, "scene/a.jpg#1": "yes", "scene/a.jpg#2": "yes"}), allow_missing=True)
    assert (found["perception"], found["cognition"], found["num_missing"]) == (200 + 50, 50, 1)
    assert list(found["by_task"]) == ["count", "scene", "code_reasoning"]


@pytest.mark.parametrize(
    ("answer", "published", "read"),
    [
        ("Yes", "yes", "yes"), ("no.", "no", "no"), ("YES, it is", "yes", "yes"), ("**Yes**", None, "yes"),
        ("Nothing but yes", "no", "yes"),
        ("It is not", None, "no"), ("", None, None), ("I know: no", None, "no"), ("a no", "no", "no"), ("Noise", "no", None),
    ],
)  # fmt: skip
def test_the_public_code_reads_the_first_four_characters(answer: str, published: str | None, read: str | None) -> None:
    assert parse_yes_no_mme(answer) == published
    mme = BENCHMARKS.build("mme")
    assert mme.parse(mme.read([table(COUNT)])[0], answer) == read


def test_an_answer_that_is_neither_is_wrong_and_counted() -> None:
    found = score("mme", [table(COUNT)], said("maybe", "maybe", "Yes", "No"))
    assert (found["perception"], found["num_unparsable"]) == (50 + 50, 2)
    published = score("mme", [table(COUNT)], said("**Yes**", "No", "Yes", "No"), published=True)
    assert (published["perception"], published["num_unparsable"]) == (75 + 50, 1)


@given(st.lists(st.sampled_from(("Yes", "No", "?")), min_size=4, max_size=4))
def test_accuracy_plus_is_at_most_accuracy(answers: list[str]) -> None:
    count = score("mme", [table(COUNT)], said(*answers))["by_task"]["count"]
    assert 0 <= count["accuracy_plus"] <= count["accuracy"] <= 100


def records(**changes: Any) -> Document:
    row = {"question_id": "count/1.jpg", "question": "Are there two dogs?", "answer": "Yes", "category": "count"}
    return document([{**row, **changes}, {**row, "question": "Three?", "answer": "No"}])


def test_records_share_an_id_and_so_may_predictions() -> None:
    answered = [{"question_id": "count/1.jpg", "answer": "yes"}, {"question_id": "count/1.jpg", "answer": "no"}]
    assert score("mme", [records()], lines(*answered))["perception"] == 200
    assert score("mme", [records()], lines(*answered[::-1]))["perception"] == 0
    assert score("mme", [records()], document({"count/1.jpg#1": "yes", "count/1.jpg#2": "no"}))["perception"] == 200
    [first, second] = BENCHMARKS.build("mme").read([records()])
    assert (first.image, first.group, second.question_id) == ("count/1.jpg", "count/count/1.jpg", "count/1.jpg#2")


def test_files_that_do_not_fit_are_refused() -> None:
    good = document({})
    assert faults("mme", [table("1.jpg\tIs it?\n")], good) == [
        "count.txt, line 1: 2 columns; expected image, question and answer, separated by tabs"
    ]
    assert faults("mme", [table("1.jpg\tIs it?\tmaybe\n")], good) == ["count.txt, line 1: the answer is 'maybe'; expected Yes or No"]
    assert faults("mme", [table(COUNT, "counts.txt")], good)[0].startswith(
        "counts.txt, line 1: the task is 'counts'; expected one of exist"
    )
    assert "no field 'category'" in faults("mme", [document([{"question_id": 1, "question": "?", "answer": "Yes"}])], good)[0]
    assert faults("mme", [document({})], good) == [
        "data.json holds an object; expected MME's records, or the file TASK.txt of its eval_tool"
    ]
    assert "no prediction for 3 of 4 questions" in faults("mme", [table(COUNT)], document({IDS[0]: "yes"}))[0]
    three = lines(*[{"question_id": "count/1.jpg", "answer": "yes"}] * 3)
    assert "'count/1.jpg#3' is not in the data" in faults("mme", [records()], three)[0]


def test_there_are_ten_tasks_of_perception_and_four_of_cognition() -> None:
    assert len(set(TASKS)) == 14
