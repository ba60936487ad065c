"""POPE: reading answers, the five figures, and building questions."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.benchmarks import Question
from policies.benchmarks.pope import SPLITS, Confusion, build_questions, parse_yes_no, parse_yes_no_published
from tests.policies.benchmarks.make import document, faults, lines, score

SCENES = {
    "kitchen": ["oven", "sink", "cup", "cup", "person"],
    "table": ["cup", "fork", "person"],
    "road": ["car", "person", "dog", "bus"],
    "park": ["dog", "person", "umbrella"],
    "empty": [],
}


@pytest.mark.parametrize(
    ("answer", "published", "sound"),
    [
        ("Yes", "yes", "yes"), ("no.", "no", "no"), ("NO", "yes", "no"), ("No!", "yes", "no"), ("Yes, there are no cups.", "no", "yes"),
        ("There isn\u2019t one.", "yes", "no"), ("There is a cup.", "yes", "yes"), ("The image shows none", "yes", "no"),
        ("Nope", "yes", "no"),
        ("", "yes", None), ("notebook", "yes", None), ("I am not sure", "no", None), ("No one is there", "no", "no"), ("know", "yes", None),
    ],
)  # fmt: skip
def test_answers_are_read(answer: str, published: str, sound: str | None) -> None:
    assert (parse_yes_no_published(answer), parse_yes_no(answer)) == (published, sound)


def test_the_figures_follow_from_the_counts() -> None:
    found = Confusion(3, 1, 4, 2).scores()
    assert found["accuracy"] == 70
    assert found["precision"] == 75
    assert found["recall"] == 60
    assert found["f1"] == pytest.approx(2 * 75 * 60 / 135)
    assert found["yes_ratio"] == 40


def test_an_unparsable_answer_is_wrong_and_no_yes() -> None:
    found = Confusion.of([("yes", "yes"), ("yes", None), ("no", None), ("no", "no")]).scores()
    assert (found["accuracy"], found["precision"], found["recall"], found["yes_ratio"]) == (50, 100, 50, 25)
    assert found["num_unparsable"] == 2


pairs = st.lists(st.tuples(st.sampled_from(("yes", "no")), st.sampled_from(("yes", "no", None))), max_size=20)


@given(pairs)
def test_figures_are_percentages_and_independent_of_order(given: list[tuple[str, str | None]]) -> None:
    found = Confusion.of(given).scores()
    assert all(0 <= found[key] <= 100 for key in ("accuracy", "precision", "recall", "f1", "yes_ratio"))
    assert Confusion.of(given[::-1]).scores() == found
    assert found["num_questions"] == len(given)


def test_a_question_without_a_label_is_a_fault() -> None:
    data = lines({"question_id": 1, "text": "?", "label": "maybe"}, {"question_id": 1, "text": "?", "label": "no"}, name="pope.jsonl")
    assert faults("pope", [data], document({})) == [
        "pope.jsonl, line 1: label is 'maybe'; expected yes or no",
        "pope.jsonl, line 2: question 1 appears twice, first at line 1",
    ]


def test_splits_are_scored_apart() -> None:
    rows = [{"question_id": i, "text": "?", "label": "yes", "category": split} for i, split in enumerate(("random", "popular", "popular"))]
    found = score("pope", [lines(*rows, name="pope.jsonl")], document({"0": "no", "1": "yes", "2": "no"}))
    assert {split: of["accuracy"] for split, of in found["by_split"].items()} == {"random": 0, "popular": 50}


def asked(questions: list[Question], label: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for question in questions:
        name = question.text.removeprefix("Is there a").removeprefix("n").removeprefix(" ").removesuffix(" in the image?")
        if question.answers == (label,):
            found.setdefault(question.image, []).append(name)
    return found


@pytest.mark.parametrize("split", SPLITS)
def test_questions_are_true_balanced_and_repeatable(split: str) -> None:
    questions = build_questions(SCENES, split, 4, seed=3)
    assert Counter(question.answers[0] for question in questions) == {"yes": 8, "no": 8}
    for image, names in asked(questions, "yes").items():
        assert set(names) <= set(SCENES[image])
        assert len(set(names)) == len(names)
    for image, names in asked(questions, "no").items():
        assert not set(names) & set(SCENES[image])
        assert len(set(names)) == len(names) == 2
    assert [question.answers[0] for question in questions] == ["yes", "no"] * 8
    assert build_questions(SCENES, split, 4, seed=3) == questions
    turned = build_questions(dict(reversed(SCENES.items())), split, 4, seed=3)
    assert {(q.image, q.text) for q in turned} == {(q.image, q.text) for q in questions}


def test_popular_asks_for_the_most_frequent_absent_objects() -> None:
    assert asked(build_questions(SCENES, "popular", 4, seed=0), "no")["table"] == ["dog", "bus"]


def test_adversarial_asks_for_what_stands_with_these_objects() -> None:
    near = {"a": ["fork", "knife"], "b": ["fork", "knife", "plate"], "c": ["fork"], "d": ["car", "bus"], "e": ["car", "bus"], "f": ["bus"]}
    assert asked(build_questions(near, "adversarial", 2, seed=0), "no")["c"] == ["knife"]
    assert asked(build_questions(near, "popular", 2, seed=0), "no")["c"] == ["bus"]


def test_the_seed_changes_the_random_ones() -> None:
    many = {str(i): [f"thing {j}" for j in range(i, i + 8)] for i in range(20)}
    assert build_questions(many, "random", 6, seed=0) != build_questions(many, "random", 6, seed=1)


def test_the_article_fits_the_object() -> None:
    texts = {question.text for question in build_questions({"a": ["oven"], "b": ["sink"]}, "random", 2, seed=0)}
    assert texts == {"Is there an oven in the image?", "Is there a sink in the image?"}


@pytest.mark.parametrize(
    ("split", "num", "text"), [("hard", 4, "split is 'hard'"), ("random", 3, "num_per_image is 3"), ("random", 0, "is 0")]
)
def test_senseless_requests_are_refused(split: str, num: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        build_questions(SCENES, split, num, seed=0)
