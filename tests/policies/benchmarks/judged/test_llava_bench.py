"""LLaVA-Bench: reading two scores from a review, and the relative score."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.benchmarks.judged.llava_bench import parse_scores, parse_scores_published, relative_score
from tests.policies.benchmarks.make import document, faults, lines, score


@pytest.mark.parametrize(
    ("review", "scores"),
    [
        ("8 9\nGood.", (8, 9)), ("8, 9", (8, 9)), ("\n 8.5/10 9/10 \nx", (8.5, 9)), ("Scores: 7 & 10", (7, 10)), ("(7, 3)", (7, 3)),
        ("**8 9**", (8, 9)), ("Assistant 1: 8\nAssistant 2: 9.5/10", (8, 9.5)),
        ("Fine.\nAssistant 2 score: 4\nAssistant 1 score is 6.", (6, 4)),
        ("Long.\nIn conclusion, the scores are (1, 5) for both.", (1, 5)), ("8 11", None), ("-1 5", None), ("inf 3", None),
        ("nan nan", None), ("<think>Assistant 1: 2\nAssistant 2: 3?</think>\n7 9\nFine.", (7, 9)), ("<think>\n8 9", None),
        ("<think>No.</think>Assistant 1: 8\nAssistant 2: 9", (8, 9)),
        ("", None), ("8", None), ("8 9 10", None), ("Assistant 1 has 3 dogs, Assistant 2 none.", None), ("eight nine", None),
        ("Assistant 1: 8, later Assistant 1: 5. Assistant 2: 9", None),
    ],
)  # fmt: skip
def test_scores_are_read_from_reviews(review: str, scores: tuple[float, float] | None) -> None:
    assert parse_scores(review) == scores


@pytest.mark.parametrize(
    ("review", "scores"),
    [("8 9\nx", (8, 9)), ("8,9", (8, 9)), ("8, 9", (-1, -1)), (" 8 9", (-1, -1)), ("100 1e1", (100, 10)), ("", (-1, -1))],
)
def test_the_public_reading_takes_one_form_and_any_number(review: str, scores: tuple[float, float]) -> None:
    assert parse_scores_published(review) == scores


@given(
    st.tuples(st.integers(0, 100), st.integers(0, 100)),
    st.sampled_from(("{} {}", "{}, {}", "{}/10 {}/10", "Assistant 1: {}\nAssistant 2: {}")),
)
def test_any_two_scores_in_a_usual_form_are_read(tenths: tuple[int, int], form: str) -> None:
    wanted = tenths[0] / 10, tenths[1] / 10
    assert parse_scores(form.format(*wanted)) == wanted


@given(st.lists(st.tuples(st.integers(1, 10), st.integers(1, 10)), min_size=1, max_size=10))
def test_the_relative_score_is_that_of_the_means_in_any_order(scores: list[tuple[int, int]]) -> None:
    pairs = [(float(one), float(other)) for one, other in scores]
    found = relative_score(pairs)
    assert found["relative_score"] == pytest.approx(100 * sum(b for _, b in pairs) / sum(a for a, _ in pairs))
    assert relative_score(pairs[::-1]) == pytest.approx(found)


def review(number: int, text: str, category: str = "conv", **fields: Any) -> dict[str, Any]:
    return {"question_id": number, "category": category, "review": text, **fields}


def test_an_unreadable_review_is_left_out_and_counted_unless_published() -> None:
    reviews = lines(review(1, "10 5"), review(2, "no scores", "detail"), review(3, "8 8", "complex"))
    found = score("llava-bench", [], reviews)
    assert found["relative_score"] == pytest.approx(100 * 13 / 18)
    assert (found["num_reviews"], found["num_unparsable"]) == (3, 1)
    assert {name: of["relative_score"] for name, of in found["by_category"].items()} == {"complex": 100, "conv": 50}
    published = score("llava-bench", [], reviews, published=True)
    assert published["relative_score"] == pytest.approx(100 * 12 / 17)
    assert published["num_unparsable"] == 1
    assert published["printed"]["all"] == {"relative_score": 70.6, "score1_x10": 56.7, "score2_x10": 40.0}


def test_recorded_scores_count_before_the_text_unless_they_say_unreadable() -> None:
    found = score("llava-bench", [], lines(review(1, "10 5", score=[10, 1]), review(2, "Scores: 10 5", tuple=[-1, -1])))
    assert (found["mean_score_1"], found["mean_score_2"], found["num_unparsable"]) == (10, 3, 0)


def test_files_of_reviews_are_scored_apart() -> None:
    found = score("llava-bench", [], lines(review(1, "10 5", source_file="a"), review(1, "10 7", source_file="b")))
    assert {name: of["relative_score"] for name, of in found["by_source"].items()} == pytest.approx({"a": 50, "b": 70})
    assert "appears twice" in faults("llava-bench", [], lines(review(1, "10 5"), review(1, "10 7")))[0]


def test_questions_give_categories_and_are_held_against_the_reviews() -> None:
    questions = lines(
        {"question_id": 1, "text": "?", "category": "conv"}, {"question_id": 2, "text": "?", "category": "detail"}, name="q.jsonl"
    )
    found = score("llava-bench", [questions], lines({"question_id": 1, "content": "10 9"}, {"question_id": 2, "tuple": [5, 5]}))
    assert {name: of["relative_score"] for name, of in found["by_category"].items()} == {"conv": 90, "detail": 100}
    (missing,) = faults("llava-bench", [questions], lines({"question_id": 1, "content": "10 9"}))
    assert "no prediction for 1 of 2 questions (2)" in missing


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"question_id": 1, "category": "conv"}, "neither a review (review, content, text) nor its scores (score, tuple)"),
        ({"question_id": 1, "score": [8]}, "score is [8]; expected two numbers"),
        ({"question_id": 1, "score": ["8", "9"]}, "score is ['8', '9']; expected two numbers"),
        ({"question_id": 1, "score": [float("inf"), 9]}, "score is [inf, 9]; expected two numbers"),
        ({"question_id": 1, "review": 5}, "review is 5 (a number); expected a text"),
        ({"question_id": 1, "review": "8 9", "category": []}, "category is [] (a list); expected a text"),
        ({"question_id": 1, "answer": "8 9"}, "no field 'review' or 'content'"),
    ],
)
def test_faults_of_reviews_are_named(record: dict[str, Any], text: str) -> None:
    assert text in faults("llava-bench", [], lines(record))[0]
    assert "expected the judge's reviews" in faults("llava-bench", [], document({"1": "8 9"}))[0]
