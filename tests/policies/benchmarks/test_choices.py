"""Benchmarks with choices: reading which one is named, A-OKVQA, ScienceQA and MMBench's rotations."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.benchmarks import BENCHMARKS, Document, parse_document
from policies.benchmarks.mmbench import match_published
from policies.benchmarks.options import read_option
from policies.benchmarks.scienceqa import parse_letter_published
from tests.policies.benchmarks.make import document, faults, lines, score

CHOICES = ("red", "dark red", "blue", "a cat")


@pytest.mark.parametrize(
    ("answer", "index"),
    [
        ("B", 1), ("(b)", 1), ("C.", 2), ("B. dark red", 1), ("(C) blue", 2), ("The answer is B", 1), ("answer: (D)", 3), ("blue", 2),
        ("Dark  red.", 1), ("It is dark red", 1), ("It is red", 0), ("option C is right", 2), ("D is what I see", 3),
        ("E", None), ("", None),
        ("The answer is A. The answer is B.", None), ("B. The answer is C.", None), ("red or blue", None), ("A cattle market", None),
        ("A picture of something else altogether", None), ("The answer is E.", None), ("bluest", None),
    ],
)  # fmt: skip
def test_the_choice_that_an_answer_names(answer: str, index: int | None) -> None:
    assert read_option(answer, CHOICES) == index


@given(answer=st.text(max_size=30), choices=st.lists(st.text(max_size=8), max_size=5))
def test_any_answer_names_a_choice_or_none(answer: str, choices: list[str]) -> None:
    index = read_option(answer, choices)
    assert index is None or 0 <= index < len(choices)


# ---- A-OKVQA


def aokvqa(num: int = 2, **changes: Any) -> Document:
    row = {
        "question": "What?", "choices": ["red", "blue"], "correct_choice_idx": 1, "direct_answers": ["blue"] * 2 + ["sky"] * 8,
        "difficult_direct_answer": False, "image_id": 5, "split": "val",
    }  # fmt: skip
    return document([{"question_id": f"q{index}", **row, **(changes if index == 0 else {})} for index in range(num)])


def both(choice: str, answer: str) -> dict[str, str]:
    return {"multiple_choice": choice, "direct_answer": answer}


def test_both_settings_are_scored_and_difficult_questions_left_out_of_one() -> None:
    predictions = document({"q0": both("blue", "nothing"), "q1": both("red", "blue")})
    found = score("aokvqa", [aokvqa(difficult_direct_answer=True)], predictions)
    assert found["multiple_choice"] == 50
    assert found["direct_answer"] == pytest.approx(200 / 3)
    assert (found["num_direct_answer"], found["num_questions"]) == (1, 2)


def test_direct_answers_are_compared_as_they_stand() -> None:
    assert score("aokvqa", [aokvqa(1)], document({"q0": {"direct_answer": "Sky"}}))["direct_answer"] == 0


def test_a_letter_names_a_choice_unless_published() -> None:
    predictions = document({"q0": both("B", "sky"), "q1": both("no idea", "sky")})
    found, published = score("aokvqa", [aokvqa()], predictions), score("aokvqa", [aokvqa()], predictions, published=True)
    assert (found["multiple_choice"], found["num_unparsable"]) == (50, 1)
    assert (published["multiple_choice"], published["num_unparsable"]) == (0, 2)


def test_an_answer_comes_after_its_reasoning_unless_published() -> None:
    predictions = document({"q0": both("<think>red?</think>blue", "<think>red?</think>sky"), "q1": both("<think>blue", "<think>sky")})
    found, published = score("aokvqa", [aokvqa()], predictions), score("aokvqa", [aokvqa()], predictions, published=True)
    assert (found["multiple_choice"], found["direct_answer"]) == (50, 50)
    assert (found["num_unparsable"], found["num_unparsable_direct_answer"]) == (1, 1)
    assert (published["multiple_choice"], published["direct_answer"]) == (0, 0)


def test_one_setting_alone_is_scored_alone() -> None:
    found = score(
        "aokvqa", [aokvqa()], lines({"question_id": "q0", "multiple_choice": "blue"}, {"question_id": "q1", "multiple_choice": "blue"})
    )
    assert found["multiple_choice"] == 100
    assert "direct_answer" not in found


def test_faults_of_predictions_are_named() -> None:
    found = faults(
        "aokvqa", [aokvqa(5)], document({"q0": "blue", "q1": {"answer": "x"}, "q2": both("x", 5), "q3": {**both("a", "b"), "c": 1}})
    )  # type: ignore[arg-type]
    assert found[0].startswith("data.json, question_id q0: the answer is 'blue' (a text); expected an object with multiple_choice")
    assert found[1].startswith("data.json, question_id q1: the answer is {'answer': 'x'} (an object); expected an object")
    assert found[2] == "data.json, question_id q2: direct_answer is 5 (a number); expected a text"
    assert found[3].startswith("data.json, question_id q3: the answer has 'c'; expected an object")
    assert found[4].startswith("data.json has no prediction for 1 of 5 questions (q4)")
    lacking = faults("aokvqa", [aokvqa()], document({"q0": both("a", "b"), "q1": {"multiple_choice": "a"}}))
    assert lacking == ["data.json, question_id q1: no direct_answer, which other predictions have; add it"]


def test_faults_of_its_data_are_named() -> None:
    found = faults("aokvqa", [aokvqa(2, correct_choice_idx=2)], document({}))
    assert found == ["data.json, entry 0: correct_choice_idx is 2; there are 2 choices"]
    assert "difficult_direct_answer is 1" in faults("aokvqa", [aokvqa(2, difficult_direct_answer=1)], document({}))[0]


def test_its_prompts_differ_by_setting() -> None:
    benchmark = BENCHMARKS.build("aokvqa")
    (question,) = benchmark.read([aokvqa(1)])
    assert benchmark.settings == ("multiple_choice", "direct_answer")
    assert benchmark.prompt(question).split("\n") == [
        "What?",
        "A. red",
        "B. blue",
        "Answer with the option's letter from the given choices directly.",
    ]
    assert benchmark.prompt(question, "direct_answer") == "What?\nAnswer the question using a single word or phrase."
    assert (benchmark.parse(question, "B."), benchmark.parse(question, "Sky.", "direct_answer")) == ("blue", "sky")


# ---- ScienceQA


def problems() -> Document:
    common = {"choices": ["red", "blue"], "hint": "Look.", "split": "test"}
    return document({
        "1": {"question": "What?", "answer": 0, "image": "image.png", "subject": "natural science", **common},
        "2": {"question": "Which?", "answer": 1, "image": None, "subject": "social science", **common},
    })  # fmt: skip


def test_accuracy_is_over_all_over_images_and_by_subject() -> None:
    found = score("scienceqa", [problems()], document({"1": "B", "2": "The answer is B."}))
    assert (found["accuracy"], found["image_accuracy"], found["num_image_questions"]) == (50, 0, 1)
    assert found["by_subject"] == {"natural science": 0, "social science": 100}


def test_unreadable_answers_are_counted_and_the_public_reading_is_narrower() -> None:
    predictions = document({"1": "(A)", "2": "who knows"})
    assert score("scienceqa", [problems()], predictions)["num_unparsable"] == 1
    published = score("scienceqa", [problems()], predictions, published=True)
    assert (published["accuracy"], published["num_unparsable"]) == (0, 2)


@pytest.mark.parametrize(
    ("text", "letter"), [("A", "A"), ("A. yes", "A"), ("a", None), ("A.", None), ("The answer is B.", "B"), ("F", None)]
)
def test_the_public_reading_of_a_letter(text: str, letter: str | None) -> None:
    assert parse_letter_published(text) == letter


def test_a_prompt_has_hint_question_and_letters() -> None:
    benchmark = BENCHMARKS.build("scienceqa")
    prompt = benchmark.prompt(benchmark.read([problems()])[0])
    assert prompt == "Look.\nWhat?\nA. red\nB. blue\nAnswer with the option's letter from the given choices directly."


def test_missing_questions_of_several_splits_point_to_the_split() -> None:
    data = document([{"id": i, "text": "?", "choices": ["a", "b"], "answer": 0, "split": split} for i, split in enumerate(("test", "val"))])
    assert "choose one of the splits test, val with --split" in faults("scienceqa", [data], document({"0": "A"}))[0]
    assert faults("scienceqa", [document({"1": 5})], document({})) == ["data.json holds neither a list of questions nor problems by id"]


# ---- MMBench


def table(*rows: str, header: str = "index\tquestion\thint\tA\tB\tC\tanswer\tcategory\timage") -> Document:
    return parse_document("mmbench.tsv", "\n".join((header, *rows)).encode())


TABLE = table("4\tWhich?\tnan\tred\tdark red\tblue\tB\tcolour\t" + "x" * 100, "9\tWhat?\t\tcat\tdog\t\tA\tanimal\t" + "y" * 100)


def test_a_question_is_right_only_in_every_rotation() -> None:
    right = {"4": "B", "1000004": "A", "2000004": "C", "9": "A", "1000009": "B"}
    assert score("mmbench", [TABLE], document(right))["accuracy"] == 100
    found = score("mmbench", [TABLE], document({**right, "1000004": "B"}))
    assert (found["accuracy"], found["vanilla_accuracy"]) == (50, 100)
    assert found["by_category"] == {"animal": 100, "colour": 0}
    assert (found["num_questions"], found["num_rotations"]) == (2, 5)


def test_always_the_same_letter_is_never_right() -> None:
    found = score("mmbench", [TABLE], document({"4": ["B", "B", "B"], "9": ["A", "A"]}))
    assert (found["accuracy"], found["vanilla_accuracy"]) == (0, 100)


def test_lists_stand_for_the_rotations_in_order() -> None:
    assert score("mmbench", [TABLE], document({"4": ["B", "dark red", "(C)"], "9": ["cat", "B. cat"]}))["accuracy"] == 100
    as_lines = lines({"question_id": 4, "answer": ["B", "A", "C"]}, {"question_id": 9, "answer": ["A", "B"]})
    assert score("mmbench", [TABLE], as_lines)["accuracy"] == 100
    found = faults("mmbench", [TABLE], document({"4": ["B"], "9": ["A", 5], "7": ["A"]}))
    assert "a list of 1 answers; expected one for each of its 3 rotations" in found[0]
    assert "question_id '7' is not in the data" in found[1]


def test_a_table_with_its_rotations_is_taken_as_it_is() -> None:
    rows = ("4\tWhich?\t\tred\tblue\t\tB\tcolour\tx", "1000004\tWhich?\t\tblue\tred\t\tA\tcolour\tx")
    found = score("mmbench", [table(*rows)], document({"4": "B", "1000004": "A"}))
    assert (found["accuracy"], found["num_rotations"]) == (100, 2)


def test_an_image_cell_may_name_the_row_with_the_image() -> None:
    rows = ("4\tWhich?\t\tred\tblue\t\tB\tcolour\t" + "x" * 100, "1000004\tWhich?\t\tblue\tred\t\tA\tcolour\t4")
    assert {question.image for question in BENCHMARKS.build("mmbench").read([table(*rows)])} == {"x" * 100}


def test_what_no_rule_matches_goes_to_the_judge() -> None:
    asked = []

    def judge(question: str, choices: object, answer: str) -> str | None:
        asked.append((question, answer))
        return "dark red" if answer == "the deeper one" else None

    predictions = document({"4": ["the deeper one", "A", "C"], "9": ["it purrs", "B"]})
    alone = score("mmbench", [TABLE], predictions)
    assert (alone["accuracy"], alone["num_unparsable"]) == (0, 2)
    found = score("mmbench", [TABLE], predictions, judge=judge)
    assert (found["accuracy"], found["num_unparsable"]) == (50, 1)
    assert asked == [("Which?", "the deeper one"), ("What?", "it purrs")]


def test_the_public_rules_look_within_words() -> None:
    assert match_published("It is dark red", ["red", "dark red", "blue"]) is None
    assert match_published("cattle", ["cat", "dog"]) == "A"
    assert match_published("(B)", ["cat", "dog"]) == "B"
    assert match_published("A dog is here now", ["cat", "dog"]) is None


def test_faults_of_a_table_are_named() -> None:
    found = faults(
        "mmbench", [table("x\t?\t\ta\tb\t\tA\t\t", "1\t?\t\ta\t\tc\tA\t\t", "2\t?\t\ta\tb\t\tC\t\t", "2\t?\t\ta\tb\t\tA\t\t")], document({})
    )
    assert found[0].startswith("mmbench.tsv, line 2: index is 'x'; expected a whole number")
    assert found[1].startswith("mmbench.tsv, line 3: the choices are ['a', '', 'c'")
    assert found[2] == "mmbench.tsv, line 4: answer is 'C'; expected one of A, B"
    assert found[3] == "mmbench.tsv, line 5: index 2 appears twice, first at line 4"
    with pytest.raises(ValueError, match=r"mmbench\.tsv, line 2: 2 cells; the header has 9"):
        table("1\t2")
