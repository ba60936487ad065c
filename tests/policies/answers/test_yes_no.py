"""Reading yes and no as a person would, or neither."""

from __future__ import annotations

import time

import pytest

from policies.answers.yes_no import parse_yes_no
from policies.metrics import says_yes


@pytest.mark.parametrize("answer", [
    "Yes", "YES!", "\uff39\uff45\uff53\u3002", "**Yes**", "Yes, there are no cups.", "Yes\n\nThe image shows no cat.", "Answer: yes",
    "The answer is yes.", "There is a dog, but it is not moving.", "There is no doubt that there is a dog.", "Absolutely.", "I think so",
    "Is there a dog? Yes.", "A dog is visible in the image", "True", "<think>No, it is not.</think>Yes", r"\boxed{Yes}",
    "\u662f", "\u662f\u7684\uff0c\u56fe\u4e2d\u6ca1\u6709\u522b\u7684\u72d7", "\u6709", "\u56fe\u4e2d\u6709\u4e00\u53ea\u72d7\u3002",
    "\u7b54\u6848\u662f\uff1a\u662f", "\u56fe\u4e2d\u6709\u6ca1\u6709\u72d7\uff1f\u6709\u3002", "\u0414\u0430, \u0435\u0441\u0442\u044c",
    "S\u00ed, no hay otro",
])  # fmt: skip
def test_a_yes(answer: str) -> None:
    assert parse_yes_no(answer) == "yes"
    assert says_yes(answer)


@pytest.mark.parametrize("answer", [
    "No", "\uff2e\uff2f", "No, there is a cat instead.", "There is no dog", "I don't see any.", "There isn\u2019t one.", "Answer: no",
    "I don't think so", "Absolutely not", "Is it a dog or not? No.", "The dog is absent.", "I cannot see a dog.", "False",
    "There is a table, but there is no dog.", "</think>No", "\u4e0d\u662f", "\u6ca1\u6709", "\u4e0d\uff0c\u6ca1\u6709",
    "\u56fe\u4e2d\u6ca1\u6709\u72d7\u3002", "\u7b54\u6848\uff1a\u6ca1\u6709", "\u041d\u0435\u0442",
])  # fmt: skip
def test_a_no(answer: str) -> None:
    assert parse_yes_no(answer) == "no"
    assert not says_yes(answer)


@pytest.mark.parametrize("answer", [
    "", " ", "nan", "maybe", "I don't know", "I am not sure", "Cannot be determined", "yes or no", "Yes/No", "Yes and no", "not yes",
    "Yes. The answer is no.", "Answer: yes. Answer: no.", "<think>Yes", "<think>Yes</think>", "\u4e0d\u786e\u5b9a",
    "\u65e0\u6cd5\u5224\u65ad\u56fe\u4e2d\u662f\u5426\u6709\u72d7", "\u8fd9\u662f\u4e00\u4e2a\u53a8\u623f",
])  # fmt: skip
def test_what_is_neither_is_read_as_neither(answer: str) -> None:
    assert parse_yes_no(answer) is None
    assert not says_yes(answer)


@pytest.mark.parametrize("piece", ["\n", "! ", "?", "a? ", "no ", "not ", "answer ", "\u662f", "there is "])
def test_long_answers_are_read_in_linear_time(piece: str) -> None:
    started = time.process_time()
    parse_yes_no(piece * (40_000 // len(piece)))
    assert time.process_time() - started < 3
