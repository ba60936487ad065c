from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from policies.generation.instructions import (
    CANONICAL_INSTRUCTIONS,
    INSTRUCTION_POLICIES,
    KnowledgeType,
    QuestionType,
    plan_tasks,
    vig_target,
)
from policies.generation.knowledge import (
    FirstWords,
    ShortAnswer,
    count_first_words,
    drawn_answer,
    is_knowledge,
    questions_of,
    ranked,
    vic_prompt,
)
from policies.records import TrainingSample


def test_first_words_are_counted_and_drawn_by_frequency() -> None:
    words = count_first_words(["What is it?", " What  now?", "Why?", "", "How is it?", "What?"])
    assert words == FirstWords((("What", 3), ("How", 1), ("Why", 1)))
    rng = np.random.default_rng(0)
    drawn = Counter(words.draw(rng) for _ in range(4000))
    assert drawn["What"] / 4000 == pytest.approx(0.6, abs=0.03)
    assert set(drawn) == {"What", "How", "Why"}


def test_first_words_need_a_question() -> None:
    with pytest.raises(ValueError, match="no question"):
        count_first_words(["", " "])


def test_questions_come_from_vig_and_vic_samples_and_from_the_knowledge_types_where_there_are_any() -> None:
    plain = [
        TrainingSample("a", (("Ask something.", vig_target("Where is it?", "Here.")),), question_type="conversation"),
        TrainingSample("a", (("Why is it?", "So."), ("And how?", "So."))),
    ]
    assert questions_of(plain) == ["Where is it?", "Why is it?", "And how?"]
    own = TrainingSample("a", ((vic_prompt("okvqa", "What sport is it?"), "tennis"),), question_type="okvqa")
    assert questions_of([*plain, own]) == ["What sport is it?"]


def test_only_knowledge_questions_are_asked_for_short_answers() -> None:
    assert [is_knowledge(one) for one in ("okvqa", "aokvqa", "detail", "")] == [True, True, False, False]
    assert vic_prompt(KnowledgeType.AOKVQA, "What sport?") == "Question: What sport? Short answer:"
    assert vic_prompt("conversation", "What sport?") == "What sport?"


def test_a_weight_is_the_cubed_mean_token_probability_in_percent() -> None:
    assert ShortAnswer("red", 0.0).weight == 100
    assert ShortAnswer("red", math.log(0.5)).weight == pytest.approx(12.5)


def test_answers_are_distinct_and_the_heaviest_comes_first() -> None:
    answers = [
        ShortAnswer("red", -0.5),
        ShortAnswer("Red.", -0.1),
        ShortAnswer("blue", -0.2),
        ShortAnswer(" . ", 0.0),
        ShortAnswer("", 0.0),
    ]
    assert ranked(answers) == [answers[1], answers[2]]
    assert ranked([]) == []


def test_tasks_of_the_knowledge_types_begin_with_a_drawn_word() -> None:
    words = FirstWords((("What", 1), ("Why", 1)))
    mix = {KnowledgeType.OKVQA: 1.0, QuestionType.DETAIL: 1.0}
    tasks = plan_tasks([f"image-{index}" for index in range(50)], mix, 2, 3, first_word=words.draw)
    for task in tasks:
        assert task.instruction == CANONICAL_INSTRUCTIONS[task.question_type]
    assert {task.answer_prefix for task in tasks if task.question_type == "okvqa"} == {"Question: What", "Question: Why"}
    assert {task.answer_prefix for task in tasks if task.question_type == "detail"} == {""}
    without = plan_tasks([f"image-{index}" for index in range(50)], mix, 2, 3, INSTRUCTION_POLICIES.build("varied"))
    assert [task.question_type for task in without] == [task.question_type for task in tasks]
    assert {task.answer_prefix for task in without} == {""}


def test_a_draw_picks_a_short_answer_by_weight() -> None:
    draws = [number / 400 for number in range(400)]
    found = [drawn_answer("tea", ("tea", "soup"), (60.0, 20.0), draw) for draw in draws]
    assert (found.count("tea"), found.count("soup")) == (300, 100)
    assert drawn_answer("tea", (), (), 0.9) == "tea"
