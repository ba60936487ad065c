"""How answers are scored, and which way of scoring fits which data."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.records import HeldOutQuestion
from policies.registry import UnknownPolicyError
from policies.scoring.answer_metrics import ANSWER_METRICS, AnswerMetric, Judge, Likelihood, choose, options_in
from policies.scoring.judging import Look, Review

LISTED = "What is it?\nA. a cat\nB. a dog\nAnswer with the option's letter from the given choices directly."


def question(text: str, *answers: str, kind: str = "conversation", choices: tuple[str, ...] = (), right: str = "") -> HeldOutQuestion:
    return HeldOutQuestion("1", "a.jpg", text, answers[0], kind, answers if len(answers) > 1 else (), choices, right)


def score(name: str, asked: HeldOutQuestion, answer: str, **options: Any) -> float:
    return ANSWER_METRICS.build(name, options).score(asked, answer)


@pytest.mark.parametrize(
    ("name", "asked", "scores"),
    [
        ("exact", question("?", "The ring is red."), {"The  ring is\nred.": 1, "the ring is red.": 0, "The ring is red": 0}),
        ("vqa", question("?", "two"), {"2": 1, "The two.": 1, "There are two": 1, "three": 0}),
        ("vqa", question("?", "red", "red", "blue"), {"Red.": 2 / 3, "blue": 1 / 3, "green": 0}),
        ("vqa", question("?", *["red"] * 3, *["blue"] * 7), {"red": 0.9, "blue": 1}),
        ("choice", question(LISTED, "B"), {"B": 1, "(B)": 1, "a dog": 1, "The answer is B.": 1, "A": 0, "a dog or a cat": 0}),
        ("choice", question("What?", "puppy", choices=("a cat", "a dog"), right="a dog"), {"B": 1, "It is a dog.": 1, "A": 0, "": 0}),
        ("yes_no", question("?", "Yes"), {"yes, it is": 1, "There is a dog.": 1, "No": 0, "Perhaps": 0}),
        ("yes_no", question("?", "no, there is none"), {"No.": 1, "There isn't one.": 1, "Yes": 0, "": 0}),
        ("rouge_l", question("?", "A red ring stands there."), {"a red ring stands there": 1, "A ring.": 4 / 7, "nothing": 0, "": 0}),
        ("rouge_l", question("?", "two dogs", "a big brown dog"), {"a brown dog": 6 / 7, "two dogs": 1}),
        ("rouge_l", question("?", "\u4e00\u53ea\u732b"), {"\u4e00\u53ea\u72d7": 2 / 3}),
    ],
)
def test_answers_are_scored_as_a_person_would(name: str, asked: HeldOutQuestion, scores: dict[str, float]) -> None:
    assert {answer: score(name, asked, answer) for answer in scores} == {answer: pytest.approx(one) for answer, one in scores.items()}


@given(answer=st.text(max_size=60), reference=st.lists(st.sampled_from(("red", "Dog.", "2", "\u732b")), min_size=1).map(" ".join))
def test_scores_are_shares_and_the_reference_itself_is_right(answer: str, reference: str) -> None:
    asked = question("Is it?", reference)
    for name in ("exact", "vqa", "rouge_l"):
        assert 0.0 <= score(name, asked, answer) <= 1.0
    assert score("exact", asked, reference) == score("vqa", asked, reference) == 1.0


def test_a_likelihood_is_the_geometric_mean_of_the_tokens_probabilities() -> None:
    assert Likelihood().of(math.log(0.5) + math.log(0.125), 2) == pytest.approx(0.25)
    assert Likelihood().of(0.0, 0) == 1.0


@pytest.mark.parametrize(
    ("name", "asked", "prompt"),
    [
        ("exact", question("What?", "red", kind="okvqa"), "What?"),
        ("vqa", question("What?", "red"), "What?\nAnswer the question using a single word or phrase."),
        ("vqa", question("What?", "red", kind="okvqa"), "Question: What? Short answer:"),
        ("likelihood", question("What?", "red", kind="aokvqa"), "Question: What? Short answer:"),
        ("likelihood", question("What?", "It is red."), "What?"),
        ("yes_no", question("Is it?", "Yes"), "Is it?"),
        ("choice", question(LISTED, "B"), LISTED),
        ("choice", question("What is it?", "B", choices=("a cat", "a dog")), LISTED),
    ],
)
def test_a_question_is_asked_in_the_words_that_its_metric_needs(name: str, asked: HeldOutQuestion, prompt: str) -> None:
    assert ANSWER_METRICS.build(name).prompt(asked) == prompt


@pytest.mark.parametrize(
    ("questions", "has_program", "name", "why"),
    [
        ([question("?", "The ring is red.")], True, "exact", "a program knows the answers"),
        ([question("?", "Yes"), question("?", "no, there is none")], False, "yes_no", "every answer begins with yes or no"),
        ([question(LISTED, "B"), question("?", "a cat", choices=("a cat", "a dog"))], False, "choice", "every question has choices"),
        ([question("?", "red"), question("?", "2")], False, "vqa", "2 of 2 questions have short answers"),
        ([question("?", "red", "blue", "blue", "teal")], False, "vqa", "1 of 1 questions have short answers, up to 4 each"),
        ([question("?", "It is a red ring that stands on a table.")], False, "likelihood", "0 of 1 questions have short answers"),
        ([question("?", "A dog runs.", "Two dogs are on the grass.")], False, "likelihood", "0 of 1 questions"),
        ([question("?", "No one is there."), question("?", "It is red.")], False, "likelihood", "0 of 2 questions"),
        ([question(LISTED, "B"), question("?", "A ring is in the middle of it.")], False, "likelihood", "1 of 2 questions"),
        ([question("?", "red")] * 19 + [question("?", "It is hard to tell from here.")], False, "vqa", "19 of 20 questions"),
    ],
)
def test_the_metric_follows_from_the_data(questions: list[HeldOutQuestion], has_program: bool, name: str, why: str) -> None:
    found = choose(questions, has_program=has_program)
    assert found[0] == name
    assert found[1].startswith(why)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (LISTED, ("a cat", "a dog")),
        ("Which?\n(A) red\n(B) blue\n(C) green", ("red", "blue", "green")),
        ("Which is it? Options: (A) New Jersey (B) Maine", ("New Jersey", "Maine")),
        ("A. Smith is who?", ()),
        ("Which?\nB. red\nC. blue", ()),
        ("Vitamin A. And B. What?", ()),
    ],
)
def test_choices_are_found_in_a_questions_text(text: str, options: tuple[str, ...]) -> None:
    assert options_in(text) == options


@pytest.mark.parametrize(
    ("name", "asked", "problem"),
    [
        ("choice", question("What?", "red"), "it has no choices"),
        ("choice", question(LISTED, "a cow"), "its answer 'a cow' names none of its choices, or several"),
        ("yes_no", question("Is it?", "A cat."), "its answer 'A cat.' does not begin with yes or no"),
        ("vqa", question("What?", "red"), None),
    ],
)
def test_what_a_metric_cannot_score_is_said(name: str, asked: HeldOutQuestion, problem: str | None) -> None:
    assert ANSWER_METRICS.build(name).problem(asked) == problem


def reviews(*scores: tuple[float, float] | None) -> list[Review]:
    return [Review(Look(bool(number)), "", pair, 1) for number, pair in enumerate(scores)]


def test_a_judge_scores_against_the_reference_in_both_orders() -> None:
    judge = Judge(endpoint="http://127.0.0.1:1/v1", model="m")
    assert judge.of(reviews((8.0, 8.0), (8.0, 8.0))) == 0.5
    assert judge.of(reviews((9.0, 3.0), (9.0, 3.0))) == 0.25
    assert judge.of(reviews((9.0, 7.0), (7.0, 9.0))) == 0.5  # it prefers whoever stands first
    assert judge.of(reviews((9.0, 3.0), None)) is None
    assert replace(judge, both_orders=False).of(reviews((5.0, 10.0))) == pytest.approx(2 / 3)


def test_a_judge_is_told_all_references() -> None:
    pair = Judge(path="judge").pair(question("What?", "a dog", "a puppy", "a dog"), "A cat.")
    assert (pair.reference, pair.answer, pair.category) == ("a dog", "A cat.", "conv")
    assert pair.context.endswith("question:\na dog\na puppy")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"endpoint": "http://127.0.0.1:1/v1"},
        {"endpoint": "x", "model": "m", "path": "p"},
        {"path": "p", "max_usd": 1.0},
        {"path": "p", "max_requests": 0},
    ],
)
def test_a_judge_that_nobody_can_ask_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UnknownPolicyError):
        ANSWER_METRICS.build("judge", options)


class Length(AnswerMetric):
    """A metric of one's own."""

    def score(self, question: HeldOutQuestion, answer: str) -> float:
        return min(1.0, len(answer) / 10)


def test_a_metric_of_ones_own_defines_its_score_alone() -> None:
    metric = ANSWER_METRICS.build("tests.policies.scoring.test_answer_metrics:Length")
    asked = question("What?", "red")
    assert (metric.score(asked, "a cat"), metric.prompt(asked), metric.problem(asked), metric.measure) == (0.5, "What?", None, "score")
