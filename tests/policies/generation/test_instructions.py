from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from policies.generation.instructions import (
    CANONICAL_INSTRUCTIONS,
    INSTRUCTION_POLICIES,
    TRAINING_INSTRUCTIONS,
    QuestionType,
    parse_vig,
    plan_tasks,
    vig_target,
)

EVEN = dict.fromkeys(QuestionType, 1.0)
IMAGES = [f"image-{index}" for index in range(200)]


def test_an_image_with_three_tasks_gets_three_types() -> None:
    tasks = plan_tasks(IMAGES, {QuestionType.CONVERSATION: 8, QuestionType.DETAIL: 1, QuestionType.COMPLEX: 1}, 3, seed=1)
    assert [task.image_id for task in tasks[:6]] == ["image-0"] * 3 + ["image-1"] * 3
    assert all({task.question_type for task in tasks[i : i + 3]} == set(QuestionType) for i in range(0, len(tasks), 3))


def test_types_repeat_only_once_they_are_used_up() -> None:
    tasks = plan_tasks(["one"], {QuestionType.DETAIL: 1, QuestionType.COMPLEX: 1}, 5, seed=1)
    counts = Counter(task.question_type for task in tasks)
    assert sorted(counts.values()) == [2, 3]
    assert QuestionType.CONVERSATION not in counts


def test_single_tasks_follow_the_mix() -> None:
    tasks = plan_tasks(IMAGES * 10, {QuestionType.CONVERSATION: 0.7, QuestionType.COMPLEX: 0.3}, 1, seed=3)
    found = Counter(task.question_type for task in tasks)
    assert found[QuestionType.CONVERSATION] / len(tasks) == pytest.approx(0.7, abs=0.03)
    assert found[QuestionType.DETAIL] == 0


def test_a_plan_follows_from_its_seed() -> None:
    assert plan_tasks(IMAGES, EVEN, 2, seed=5) == plan_tasks(IMAGES, EVEN, 2, seed=5)
    assert plan_tasks(IMAGES, EVEN, 2, seed=5) != plan_tasks(IMAGES, EVEN, 2, seed=6)


def test_canonical_is_the_default_and_varied_changes_only_the_wording() -> None:
    plain = plan_tasks(IMAGES, EVEN, 2, seed=5)
    varied = plan_tasks(IMAGES, EVEN, 2, seed=5, instructions=INSTRUCTION_POLICIES.build("varied"))
    assert all(task.instruction == CANONICAL_INSTRUCTIONS[task.question_type] for task in plain)
    assert [(t.image_id, t.question_type) for t in plain] == [(t.image_id, t.question_type) for t in varied]
    assert {t.instruction for t in varied} == {wording for wordings in TRAINING_INSTRUCTIONS.values() for wording in wordings}


@pytest.mark.parametrize(
    ("mix", "num_per_image", "message"),
    [
        ({"opinion": 1.0}, 1, "opinion"),
        ({}, 1, "at least one above 0"),
        ({"detail": 0.0}, 1, "at least one above 0"),
        ({"detail": 2.0, "complex": -1.0}, 1, "weights of 0 or more"),
        ({"detail": 1.0}, 0, "num_per_image is 0; expected 1 or more"),
    ],
)
def test_a_bad_mix_is_refused(mix: dict, num_per_image: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_tasks(["one"], mix, num_per_image, seed=0)


def test_a_vig_text_is_read_back() -> None:
    pair = parse_vig(" " + vig_target("What is it?", "A ring.\n It is red."))
    assert pair is not None
    assert (pair.question, pair.answer) == ("What is it?", "A ring. It is red.")


@pytest.mark.parametrize(
    "text", ["", "Question: a", "Answer: b Question: a", "Question: a Answer: b Answer: c", "Question: Question: a Answer: b"]
)
def test_a_text_of_another_form_is_no_pair(text: str) -> None:
    assert parse_vig(text) is None


def test_types_are_drawn_as_numpy_draws_them() -> None:
    mix = {QuestionType.CONVERSATION: 8, QuestionType.DETAIL: 1, QuestionType.COMPLEX: 2}
    weights = np.array([8, 1, 2]) / 11
    for num in (1, 2, 3, 5):
        rng = np.random.default_rng([4, 0])
        sizes = [3] * (num // 3) + [num % 3] * (num % 3 > 0)
        expected = [list(QuestionType)[i] for _ in range(300) for size in sizes for i in rng.choice(3, size=size, replace=False, p=weights)]
        assert [task.question_type for task in plan_tasks([str(i) for i in range(300)], mix, num, seed=4)] == expected
